"""The closing table of ``make repro``: each stage's seconds, its key figure, and where the reports are.

Seconds come from runs/timings (never from a DVC out: they differ between runs); a stage that DVC took from its cache
has none.
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from neobert.config.evaluation import HEADLINE, EvaluationConfig
from neobert.config.load import load
from neobert.io import read_json, runs_dir

NOT_MEASURED = "validation loss not measured"


def corpus() -> str:
    manifest = read_json("data/corpus/manifest.json")
    parts = [f"{part['documents']:,} documents for {split}" for split, part in manifest["splits"].items()]
    skipped = sum(manifest.get("skipped_rows", {}).values())  # of a user's files or data sets
    return ", ".join([*parts, f"{skipped:,} bad rows skipped"] if skipped else parts)


def tokenizer() -> str:
    return f"{read_json('data/tokens/manifest.json')['tokenizer']['vocab_size']:,} tokens in the vocabulary"


def tokenize() -> str:
    return f"{read_json('data/tokens/manifest.json')['tokens']:,} tokens"


def packed(directory: str) -> str:
    manifest = read_json(f"{directory}/train/manifest.json")
    return f"{manifest['rows']:,} rows of {manifest['max_length']}, {manifest['fill']:.2%} full"


def masked_language_model(stage: str) -> str:
    metrics = read_json(f"reports/{stage}/metrics.json")
    if "eval_loss" not in metrics:  # a small corpus may have no held-out document
        return NOT_MEASURED
    return f"validation loss {metrics['eval_loss']:.3f}, accuracy {metrics['eval_accuracy']:.1%} of masked tokens"


def contrastive_preprocess() -> str:
    total = read_json("reports/contrastive_preprocess/metrics.json")["total"]
    return f"{total['train']:,} pairs; {total['bad']:,} bad, {total['contaminated']:,} removed as evaluation text"


def contrastive_finetune() -> str:
    metrics = read_json("reports/contrastive/metrics.json")
    if "eval_loss" not in metrics:  # no pairs held out
        return NOT_MEASURED
    return f"validation loss {metrics['eval_loss']:.3f}, recall@10 {metrics['eval_recall_at_10']:.1%}"


def export() -> str:
    differences = read_json("reports/export/metrics.json")["largest_difference"]
    return f"embeddings differ from the trained model by at most {differences['embeddings_document']:.0e}"


def evaluate() -> str:
    summary = read_json("reports/summary.json")
    config = load(EvaluationConfig, "evaluation")
    task = next((task for task in config.tasks if task.name == config.headline_task), None)
    if task is None or HEADLINE not in summary:
        return f"no local retrieval task; tasks scored: {len(summary)}"
    scores = summary[HEADLINE]
    order = [name for name in ("bm25", "untrained", "pretrained", "finetuned") if name in scores]
    return f"{task.main_metric} of {task.name}: " + ", ".join(f"{name} {scores[name]:.3f}" for name in order)


KEY_FIGURES = {
    "corpus": corpus,
    "tokenizer": tokenizer,
    "tokenize": tokenize,
    "pack": lambda: packed("data/packed"),
    "pretrain": lambda: masked_language_model("pretrain"),
    "pack_long": lambda: packed("data/packed_long"),
    "longer_context": lambda: masked_language_model("longer_context"),
    "contrastive_preprocess": contrastive_preprocess,
    "contrastive_finetune": contrastive_finetune,
    "export": export,
    "evaluate": evaluate,
}


def main() -> None:
    table = Table("stage", "seconds", "key figure", title="dvc repro")
    table.columns[1].justify = "right"
    total = 0.0
    for stage, key_figure in KEY_FIGURES.items():
        timing = runs_dir() / "timings" / f"{stage}.json"
        seconds = read_json(timing)["seconds"] if timing.is_file() else None
        total += seconds or 0.0
        table.add_row(stage, "cached" if seconds is None else f"{seconds:.0f}", key_figure())
    table.add_row("total", f"{total:.0f}", "")
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    reports = ", ".join(str(path) for path in sorted(Path("reports").glob("*.*")) if path.suffix in (".md", ".html"))
    console.print(f"reports: {reports}, reports/results.png, reports/*/loss.png; metrics: dvc metrics show")


if __name__ == "__main__":
    main()
