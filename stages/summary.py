"""The closing table of ``make repro``: each stage's seconds, its key figure, and where the reports are.

Seconds come from runs/timings (never from a DVC out: they differ between runs); a stage that DVC took from its cache
has none.
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from neobert.io import read_json
from stages.stage import runs_dir

STAGES = (
    "corpus",
    "tokenizer",
    "tokenize",
    "pack",
    "pretrain",
    "pack_long",
    "longer_context",
    "contrastive_preprocess",
    "contrastive_finetune",
    "export",
    "evaluate",
)


def main() -> None:
    table = Table("stage", "seconds", "key figure", title="dvc repro")
    table.columns[1].justify = "right"
    total = 0.0
    for stage in STAGES:
        timing = runs_dir() / "timings" / f"{stage}.json"
        seconds = read_json(timing)["seconds"] if timing.is_file() else None
        total += seconds or 0.0
        table.add_row(stage, "cached" if seconds is None else f"{seconds:.0f}", key_figure(stage))
    table.add_row("total", f"{total:.0f}", "")
    console = Console()
    console.print(table)
    console.print("reports: reports/results.md, reports/results.png, reports/*/loss.png; metrics: dvc metrics show")


if __name__ == "__main__":
    main()
