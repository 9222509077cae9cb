"""GLUE results for DVC and for people: mean and deviation over seeds, a table, every validation."""

import csv
from pathlib import Path

import numpy as np

from neobert.evaluation.glue import Run
from neobert.io import atomic_path, write_json, write_text


def summarise(runs: list[Run]) -> dict[str, dict[str, float]]:
    """``{task: {metric: mean, metric_std: deviation}}`` over seeds, and the average of the tasks' scores."""
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(run.task, []).append(run)
    found: dict[str, dict[str, float]] = {}
    for task, repeated in by_task.items():
        found[task] = {}
        for metric in repeated[0].best:
            values = [run.best[metric] for run in repeated]
            found[task][metric] = round(float(np.mean(values)), 5)
            if len(values) > 1:
                found[task][f"{metric}_std"] = round(float(np.std(values, ddof=1)), 5)
    found["average"] = {"score": round(float(np.mean([values["score"] for values in found.values()])), 5)}
    return found


def table(runs: list[Run]) -> str:
    """A Markdown table: task, score and its deviation, the metrics behind it, the best steps."""
    found = summarise(runs)
    lines = ["| task | score | metrics | best step, by seed |", "|---|---:|---|---|"]
    for task, values in found.items():
        deviation = f" ± {values['score_std']:.3f}" if "score_std" in values else ""
        details = ", ".join(f"{k} {v:.3f}" for k, v in values.items() if k != "score" and not k.endswith("_std"))
        steps = ", ".join(f"{run.best_step} (seed {run.seed})" for run in runs if run.task == task)
        lines.append(f"| {task} | {values['score']:.3f}{deviation} | {details} | {steps} |")
    return "\n".join(lines) + "\n"


def write_reports(directory: Path, runs: list[Run]) -> None:
    """``metrics.json`` (DVC metrics), ``results.md`` and ``history.csv`` (every validation) in ``directory``."""
    write_json(directory / "metrics.json", summarise(runs))
    write_text(
        directory / "results.md", "# GLUE\n\nValidation sets; the best checkpoint of each run.\n\n" + table(runs)
    )
    with atomic_path(directory / "history.csv") as temporary, open(temporary, "w", newline="") as handle:
        names = sorted({name for run in runs for row in run.history for name in row})
        writer = csv.DictWriter(handle, ["task", "seed", *names])
        writer.writeheader()
        for run in runs:
            writer.writerows({"task": run.task, "seed": run.seed, **row} for row in run.history)
