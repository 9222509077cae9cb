"""The page of a whole run: complete, partial and empty runs, hostile text, and a real browser at a phone's width."""

import csv
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert.report.gather import Places, document_lengths, length_classes
from neobert.report.page import page
from neobert.report.svg import Series, histogram, lines, number, thin, ticks
from tests.report import browser

EVIL = '<script>alert(1)</script>&"'
CHROMIUM = browser.find()


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def write_shard(path, lengths):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = pa.array(np.zeros(sum(lengths), dtype=np.uint16))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    batch = pa.record_batch([pa.ListArray.from_arrays(offsets, values)], names=["input_ids"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)


def finished_run(root):
    """What the stages of a whole run leave, with names that would break out of HTML."""
    models = {"bm25": {"find": 0.7}, "untrained": {"find": 0.2, EVIL: 0.3}, "pretrained": {"find": 0.25, EVIL: 0.35}}
    write(
        root / "reports/mteb.json",
        {**models, "finetuned": {"find": 0.8, EVIL: 0.5}, "a-very-long-model-name": {"find": 0.6}},
    )
    tasks = [{"name": "find"}, {"name": EVIL}]
    write(
        root / "params.yaml", "# note\nevaluation:\n  tasks: " + json.dumps(tasks) + "\n  models: [" + "x" * 300 + "]\n"
    )
    outs = {"outs": ["data/corpus", {"reports/a.json": {"cache": False}}]}
    write(
        root / "dvc.yaml",
        json.dumps({"stages": {"corpus": outs, "pretrain": {"metrics": [{"m.json": {"cache": False}}]}}}),
    )
    write(root / "runs/timings/corpus.json", {"seconds": 61.2})
    write(root / "data/corpus/manifest.json", {"splits": {"train": {"documents": 1000, "text_bytes": 5_000_000}}})
    write(root / "data/tokens/manifest.json", {"tokens": 123456, "tokenizer": {"vocab_size": 4096}})
    write(root / "data/packed/train/manifest.json", {"rows": 99, "max_length": 128, "fill": 0.9912})
    write_shard(root / "data/tokens/train/part-00000.arrow", [1, 2, 3, 300, 40, 50, 7])
    write_shard(root / "data/tokens/train/part-00001.arrow", [1000, 5])
    for name in ("pretrain", "longer_context", "contrastive"):
        path = root / "reports" / name / "history.csv"
        path.parent.mkdir(parents=True)
        with open(path, "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["step", "loss", "eval_loss", "lr"])
            writer.writerows([i, 5 + math.exp(-i / 300), 5.5 if i % 500 == 0 else "", 1e-3] for i in range(1, 2000))
        write(root / "reports" / name / "metrics.json", {"eval_loss": 5.4321, "note": "text"})
    write(root / "reports/glue/metrics.json", {"cola": {"score": 0.4}, "average": {"score": 0.4}})
    part = {"pseudo_perplexity": 12.34, "documents": 5, "tokens": 100}
    write(root / "reports/pseudo_perplexity/metrics.json", {**part, "by_length": {"1-32": part}})
    write(root / "reports/export/metrics.json", {"largest_difference": {"logits": 1.2e-6}})


class Wellformed(HTMLParser):
    """Checks that tags nest, and collects what could reach outside."""

    VOID = ("meta", "link", "br")

    def __init__(self):
        super().__init__()
        self.open, self.outside, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.outside += [
            v for k, v in attrs if k in ("src", "href", "srcset", "action") and v[:1] != "#" and v != "data:,"
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)  # of SVG, closed in itself

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text):
    parser = Wellformed()
    parser.feed(text)
    assert parser.open == []
    assert [value for value in parser.outside if value[:1] != "#" and value != "data:,"] == []
    assert "script" not in parser.tags
    assert "url(" not in text
    assert "@import" not in text
    return parser


def test_a_finished_run_shows_everything(tmp_path):
    finished_run(tmp_path)
    text = page(Places(tmp_path, tmp_path / "runs"))
    parser = check(text)
    assert parser.tags.count("svg") == 6  # scores, seconds, lengths, three losses
    for shown in ("<b>0.800</b>", "61", "99 rows of 128, 99.12% full", "12.3", "1.2e-06", "4,096 tokens", "# note"):
        assert shown in text
    assert text.index(">bm25<") < text.index(">untrained<") < text.index(">finetuned<") < text.index(">a-very-long")
    assert "Not made yet" not in text


def test_an_empty_and_a_partial_run_say_what_is_missing(tmp_path):
    text = page(Places(tmp_path, tmp_path / "runs"))
    check(text)
    assert text.count("Not made yet") == 6
    write(tmp_path / "reports/mteb.json", {"finetuned": {"find": 0.5}})
    text = page(Places(tmp_path, tmp_path / "runs"))
    check(text)
    assert text.count("Not made yet") == 5


def test_lengths_of_pseudo_perplexity_are_in_order(tmp_path):
    part = {"pseudo_perplexity": 12.34, "documents": 5, "tokens": 100}
    names = ["1-32", "33-64", "65-128", "129-256", "over-256"]
    by_length = dict.fromkeys(sorted(names), part)  # as write_json leaves them
    write(tmp_path / "reports/pseudo_perplexity/metrics.json", {**part, "by_length": by_length})
    shown = page(Places(tmp_path, tmp_path / "runs"))
    assert [name for name in re.findall(r"<td>([^<]*)</td>", shown) if name in names] == names


def test_skipped_rows_are_among_the_facts_of_the_data(tmp_path):
    finished_run(tmp_path)
    places = Places(tmp_path, tmp_path / "runs")
    assert "rows skipped" not in page(places)
    path = tmp_path / "data/corpus/manifest.json"
    write(path, {**json.loads(path.read_text()), "skipped_rows": {"too long": 1, "not JSON": 1234}})
    text = page(places)
    check(text)
    assert "rows skipped" in text
    assert "1,234 not JSON, 1 too long" in text


def test_lengths_are_those_of_the_shards(tmp_path):
    finished_run(tmp_path)
    assert document_lengths(Places(tmp_path)).tolist() == [1, 2, 3, 300, 40, 50, 7, 1000, 5]
    edges, counts = length_classes(np.array([1, 2, 3, 4, 7, 8, 1000]))
    assert dict(zip(edges, counts, strict=False)) == {
        1: 1,
        2: 2,
        4: 2,
        8: 1,
        16: 0,
        32: 0,
        64: 0,
        128: 0,
        256: 0,
        512: 1,
    }


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1e9, 1e9), max_size=50), st.floats(1e-6, 1e6))
def test_charts_stay_inside_their_frame(values, scale):
    chart = lines("t", [Series("s", range(len(values)), [v * scale for v in values])], "x", "y")
    if chart:
        check(chart)
        inner = chart.split('<polyline points="')[1].split('"')[0].split()
        assert all(0 <= float(c) <= 400 for point in inner for c in point.split(","))
    for low, high in ((0.0, scale), (-scale, scale), (scale, scale)):
        marks = ticks(low, high)
        assert 1 <= len(marks) <= 11
        assert all(low - 1e-6 * scale <= m <= high + 1e-6 * scale for m in marks)


def test_charts_survive_odd_values():
    assert lines("t", [Series("s", [1, 2], [float("nan"), float("inf")])], "x", "y") == ""
    check(lines(EVIL, [Series(EVIL, [1], [2])], EVIL, EVIL))
    check(histogram("t", [1, 2], [0], "x", "y"))
    assert len(thin(range(10_001), range(10_001))) <= 400
    assert [number(v) for v in (0, 0.1234, 12.5, 4567, 45678, 1.2e6, 3e9)] == [
        "0",
        "0.123",
        "12.5",
        "4567",
        "45.7k",
        "1.2M",
        "3G",
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_real_browser_shows_it(tmp_path, width):
    finished_run(tmp_path)
    url = (tmp_path / "index.html").as_uri()
    (tmp_path / "index.html").write_text(page(Places(tmp_path, tmp_path / "runs")))
    with browser.Browser(CHROMIUM) as chromium:
        chromium.open(url, width)
        assert chromium.evaluate("document.querySelectorAll('svg').length") == 6
        chromium.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        # Nothing is wider than the screen: the page itself does not scroll sideways.
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        assert chromium.evaluate("Math.max(...[...document.querySelectorAll('svg')].map(s => s.clientWidth))") <= width
        size = (
            "Math.min(...[...document.querySelectorAll('td,th,p')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        assert chromium.evaluate(size) >= 14
        drawn = "Math.min(...[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height))"
        assert chromium.evaluate(drawn) >= 9
        assert "1024" in chromium.evaluate("document.querySelectorAll('svg')[2].textContent")
        clipped = (
            "[...document.querySelectorAll('svg')].map(s => s.clientWidth - s.getBBox().width * s.clientWidth / 400)"
        )
        assert min(chromium.evaluate(clipped)) >= 0
        assert chromium.complaints() == []
        assert [r for r in chromium.requests() if r != url and not r.startswith("data:")] == []
