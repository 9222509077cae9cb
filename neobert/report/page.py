"""One self-contained HTML page of a whole run: results, pipeline, data, training, parameters.

Plain HTML, one style sheet and inline SVG; no script, no request to anywhere, so it opens from a mail attachment on a
phone. Wide tables scroll inside their own box. Cost: well under a second.
"""

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from ruamel.yaml import YAML

from neobert.report.gather import Places, data_facts, document_lengths, histories, length_classes, stages
from neobert.report.svg import Series, bars, histogram, lines, number

ORDER = ("bm25", "untrained", "pretrained", "finetuned")
STYLE = """
:root{--ink:#1b1f24;--paper:#fff;--soft:#57606a;--rule:#d0d7de;--box:#f6f8fa;
--c0:#7a8794;--c1:#c08a2d;--c2:#3d85c6;--c3:#1b7837;--c4:#7b3294;--c5:#b2182b}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--soft:#9198a1;--rule:#3d444d;--box:#151b23;
--c0:#8b98a5;--c1:#e3b341;--c2:#6cb6ff;--c3:#57ab5a;--c4:#c297ff;--c5:#f47067}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:60rem;color:var(--ink);background:var(--paper);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--rule)}
h3{font-size:1rem;margin:1rem 0 .3rem}p{margin:.4rem 0}.soft{color:var(--soft)}
.scroll{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
th{background:var(--box);white-space:nowrap}td.n,th.n{text-align:right}
svg{width:100%;max-width:35rem;height:auto;display:block}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .label{fill:var(--soft)}
svg .grid{stroke:var(--rule);stroke-width:.7}svg .line{fill:none;stroke-width:1.8}svg .bar{fill:var(--c2)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}
.key span{display:inline-block;margin-right:1rem}.key i{display:inline-block;width:.8em;height:.8em;margin-right:.3em}
pre{background:var(--box);padding:.8rem;overflow-x:auto;font-size:.85rem;line-height:1.4}
summary{cursor:pointer;padding:.4rem 0}nav a{margin-right:1rem}a{color:var(--c2)}
"""


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table in a box of its own that scrolls; columns other than ``words`` hold numbers, to the right."""

    def cells(tag: str, values: Sequence[str]) -> str:
        css = ["" if i in words else ' class="n"' for i in range(len(values))]
        return "".join(f"<{tag}{c}>{v}</{tag}>" for c, v in zip(css, values, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells("th", head)}</tr>{body}</table></div>'


def results(places: Places) -> str:
    """Scores of every model on every task, the best of a row in bold, and as bars."""
    by_model = places.json("reports/mteb.json")
    if not by_model:
        return ""
    labels = [name for name in ORDER if name in by_model] + sorted(set(by_model) - set(ORDER))
    names = list(dict.fromkeys(task for label in reversed(labels) for task in by_model[label]))
    declared = [task["name"] for task in params(places).get("evaluation", {}).get("tasks", [])]
    names.sort(key=lambda name: declared.index(name) if name in declared else len(declared))
    rows, drawn = [], []
    for name in names:
        found = {label: by_model[label][name] for label in labels if name in by_model[label]}
        best = max(found.values())
        cells = [f"<b>{v:.3f}</b>" if v == best else f"{v:.3f}" for v in found.values()]
        shown = dict(zip(found, cells, strict=True))
        rows.append([escape(name), *(shown.get(label, "–") for label in labels)])
        drawn.append((name, list(found.items())))
    key = "".join(f'<span><i style="background:var(--c{i % 6})"></i>{escape(x)}</span>' for i, x in enumerate(labels))
    table = html_table(["task", *map(escape, labels)], rows)
    return f'{table}<p class="key">{key}</p>{bars("Scores by task and model", drawn, labels)}'


def pipeline(places: Places) -> str:
    """Stages with what they make and how long they took, and the seconds as bars."""
    found = stages(places)
    if not found:
        return ""
    rows = [[escape(name), f"{s:,.0f}" if s is not None else "–", escape(", ".join(outs))] for name, outs, s in found]
    timed = [(name, [("seconds", s)]) for name, _, s in found if s is not None]
    drawn = bars("Seconds by stage", timed, ["seconds"]) if timed else ""
    note = '<p class="soft">Seconds are of the last run on this machine; – was taken from the cache.</p>'
    return html_table(["stage", "seconds", "makes"], rows, words=(0, 2)) + note + drawn


def data(places: Places) -> str:
    """Figures of the data and the histogram of document lengths."""
    facts = list(data_facts(places))
    if not facts:
        return ""
    table = html_table(["", "figure"], ([escape(a), escape(b)] for a, b in facts), words=(0, 1))
    lengths = document_lengths(places)
    if not len(lengths):
        return table
    edges, counts = length_classes(lengths)
    median, p95 = np.percentile(lengths, [50, 95])
    note = f"<p>{len(lengths):,} documents: median {number(median)} tokens, 95% at most {number(p95)}.</p>"
    return table + note + histogram("Document lengths", edges, counts, "tokens of a document", "documents")


def training(places: Places) -> str:
    """Loss curves of each training, with its held-out loss, and the last figures."""
    charts = []
    for name, rows in histories(places).items():
        series = [
            Series(label, [r["step"] for r in rows if key in r], [r[key] for r in rows if key in r])
            for key, label in (("loss", "training"), ("eval_loss", "held out"))
        ]
        metrics = places.json(f"reports/{name}/metrics.json") or {}
        figures = ", ".join(f"{escape(k)} {number(v)}" for k, v in metrics.items() if isinstance(v, int | float))
        chart = lines(f"Loss of {name}", series, "step", "loss")
        if chart:
            charts.append(f'<div><h3>{escape(name)}</h3>{chart}<p class="soft">{figures}</p></div>')
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def further(places: Places) -> str:
    """GLUE, pseudo-perplexity and the check of the export, where they were run."""
    parts = []
    glue = places.json("reports/glue/metrics.json")
    if glue:
        rows = ([escape(task), f"{values['score']:.3f}"] for task, values in glue.items())
        parts.append("<h3>GLUE</h3>" + html_table(["task", "score"], rows))
    perplexity = places.json("reports/pseudo_perplexity/metrics.json")
    if perplexity:
        lengths = sorted(perplexity["by_length"].items(), key=lambda item: first_length(item[0]))
        classes = [("all", perplexity), *lengths]
        rows = ([escape(n), number(v["pseudo_perplexity"]), str(v["documents"])] for n, v in classes)
        parts.append("<h3>Pseudo-perplexity</h3>" + html_table(["tokens", "pseudo-perplexity", "documents"], rows))
    export = places.json("reports/export/metrics.json")
    if export:
        rows = ([escape(k), number(v)] for k, v in export["largest_difference"].items())
        parts.append("<h3>Export against the trained model</h3>" + html_table(["", "largest difference"], rows))
    return "".join(parts)


def first_length(name: str) -> int:
    """Tokens of the shortest document of a class that is named ``1-32`` or ``over-512``."""
    first, last = name.split("-")
    return int(last) + 1 if first == "over" else int(first)


def params(places: Places) -> dict:
    """params.yaml as values; empty where there is none."""
    return YAML(typ="safe", pure=True).load(places.text("params.yaml")) or {}


def parameters(places: Places) -> str:
    """params.yaml as it is, folded away."""
    text = places.text("params.yaml")
    return f"<details><summary>params.yaml</summary><pre>{escape(text)}</pre></details>" if text else ""


def page(places: Places) -> str:
    """The whole page. Parts whose stages have not run say so in one line."""
    parts = {
        "Results": results(places),
        "Pipeline": pipeline(places),
        "Data": data(places),
        "Training": training(places),
        "Further figures": further(places),
        "Parameters": parameters(places),
    }
    missing = '<p class="soft">Not made yet: run <code>dvc repro</code>.</p>'
    nav = "".join(f'<a href="#p{i}">{name}</a>' for i, name in enumerate(parts))
    body = "".join(f'<h2 id="p{i}">{name}</h2>{part or missing}' for i, (name, part) in enumerate(parts.items()))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        'content="light dark"><link rel="icon" href="data:,"><title>Pipeline report</title>'
        f"<style>{STYLE}</style></head><body><h1>Pipeline report</h1><nav>{nav}</nav>{body}</body></html>\n"
    )
