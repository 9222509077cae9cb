"""What an evaluation leaves behind: metrics for DVC, a summary, a Markdown table and a chart.

All of it holds figures only, no times and no host names, so that an equal run leaves equal files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from neobert.config.evaluation import HEADLINE
from neobert.io import atomic_path, write_json, write_text

DESCRIPTIONS = {
    "bm25": "BM25 over words, identifiers split (no training)",
    "untrained": "the same encoder with its random start weights",
    "pretrained": "after pretraining and longer context, before fine-tuning",
    "finetuned": "the exported model",
}
COLORS = ("#9aa5b1", "#d8b365", "#67a9cf", "#1b7837", "#762a83", "#c51b7d", "#4d4d4d")


@dataclass(frozen=True)
class TaskRow:
    """A task as the reports name it."""

    name: str
    type: str
    metric: str


def summarise(by_model: dict[str, dict[str, float]], tasks: Sequence[TaskRow], headline: str | None) -> dict:
    """``{task: {model: score}}``, and the headline task once more as ``retrieval``."""
    summary = {
        task.name: {label: found[task.name] for label, found in by_model.items() if task.name in found}
        for task in tasks
    }
    return {HEADLINE: summary[headline], **summary} if headline in summary else summary


def table(by_model: dict[str, dict[str, float]], tasks: Sequence[TaskRow]) -> str:
    """The scores as a Markdown table: a row a task, a column a model, the best of a row in bold."""
    if not tasks:
        return "No task is declared in evaluation.tasks, evaluation.mteb_tasks or evaluation.benchmarks.\n"
    labels = list(by_model)
    lines = ["| task | metric | " + " | ".join(labels) + " |", "|---|---|" + "---:|" * len(labels)]
    for task in tasks:
        found = {label: by_model[label][task.name] for label in labels if task.name in by_model[label]}
        best = max(found.values(), default=None)
        cells = []
        for label in labels:
            shown = f"{found[label]:.3f}" if label in found else "–"
            cells.append(f"**{shown}**" if label in found and found[label] == best else shown)
        lines.append(f"| {task.name} | {task.metric} | " + " | ".join(cells) + " |")
    notes = [f"- {label}: {DESCRIPTIONS[label]}" for label in labels if label in DESCRIPTIONS]
    return "\n".join([*lines, "", *notes]) + "\n"


def chart(path: Path, by_model: dict[str, dict[str, float]], tasks: Sequence[TaskRow]) -> None:
    """Grouped bars: a group a task, a bar a model, its score at the end."""
    labels, height = list(by_model), 0.8 / max(len(by_model), 1)
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.28 * len(labels) * len(tasks)), layout="constrained")
    for number, label in enumerate(labels):
        rows = [i for i, task in enumerate(tasks) if task.name in by_model[label]]
        values = [by_model[label][tasks[i].name] for i in rows]
        color = COLORS[number % len(COLORS)]
        bars = axes.barh([i + number * height for i in rows], values, height, label=label, color=color)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axes.set_yticks(
        [i + 0.4 - height / 2 for i in range(len(tasks))], [f"{t.name}\n{t.metric}" for t in tasks], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xlabel("score (higher is better)")
    axes.spines[["top", "right"]].set_visible(False)
    if labels:
        figure.legend(loc="outside upper center", ncols=min(len(labels), 5), frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        # Without the version of the library, so that equal scores are equal bytes.
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
    plt.close(figure)


def write_reports(
    directory: Path, by_model: dict[str, dict[str, float]], tasks: Sequence[TaskRow], headline: str | None
) -> None:
    """``mteb.json`` (DVC metrics), ``summary.json``, ``results.md`` and ``results.png`` in ``directory``."""
    write_json(directory / "mteb.json", by_model)
    write_json(directory / "summary.json", summarise(by_model, tasks, headline))
    write_text(directory / "results.md", "# Evaluation\n\n" + table(by_model, tasks))
    chart(directory / "results.png", by_model, tasks)
