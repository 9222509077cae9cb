"""Run MTEB tasks with one model and keep what matters: no cache, no stale result, no task lost in silence.

MTEB's cache is off (``cache=None``), so a score always comes from this run. A task that raises does not stop the
others, as a benchmark runs for hours; all failures are reported together at the end, by name.
Source: ``mteb.evaluate``. Cost: the encoding, plus seconds a task for the metrics.
"""

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import mteb
from mteb.abstasks import AbsTask
from mteb.results import ModelResult, TaskResult
from sklearn.exceptions import UndefinedMetricWarning

from neobert.errors import PipelineError
from neobert.io import write_json

# What differs from run to run and says nothing about the model.
VOLATILE = ("evaluation_time", "kg_co2_emissions", "date", "evaluation_phases")


@dataclass
class Scores:
    """Main metric by model and task, MTEB's results behind it, and what failed."""

    by_model: dict[str, dict[str, float]] = field(default_factory=dict)
    results: dict[str, list[TaskResult]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def require_success(self) -> None:
        """Raise PipelineError naming every task that failed."""
        if self.failures:
            raise PipelineError("evaluation: " + "; ".join(self.failures))


def run_tasks(
    scores: Scores,
    label: str,
    model: Any,
    tasks: Iterable[AbsTask],
    *,
    batch_size: int,
    predictions: Path | None = None,
) -> None:
    """Evaluate ``model`` on ``tasks`` and add main metrics, results and failures to ``scores`` under ``label``.

    ``predictions``: directory for MTEB's predictions of each task (rankings, similarities), for paired comparisons.
    """
    for task in tasks:
        try:
            outcome = _run(model, task, batch_size, predictions)
        except Exception as error:  # an aggregate of failed tasks, or a modality the model lacks
            scores.failures.append(f"{task.metadata.name} failed with {label}: {error}")
            continue
        for failed in outcome.exceptions or []:
            scores.failures.append(f"{failed.task_name} failed with {label}: {failed.exception}")
        for result in outcome.task_results:
            scores.results.setdefault(label, []).append(result)
            scores.by_model.setdefault(label, {})[result.task_name] = round(float(result.get_score()), 5)


def _run(model: Any, task: AbsTask, batch_size: int, predictions: Path | None) -> ModelResult:
    datasets.disable_progress_bars()  # ours shows the encoding, which is where the time goes
    with warnings.catch_warnings():
        # Ten draws of eight examples a label leave some label without a prediction; its precision is then 0.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        return mteb.evaluate(
            model,
            task,
            co2_tracker=False,
            raise_error=False,
            cache=None,
            overwrite_strategy="always",
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
            prediction_folder=predictions,
            show_progress_bar=False,
        )


def write_results(directory: Path, scores: Scores) -> None:
    """MTEB's own JSON of each result as ``<model>/<task>.json``, without times: equal runs are equal bytes."""
    for label, results in scores.results.items():
        for result in results:
            quiet = result.model_copy(update=dict.fromkeys(VOLATILE))
            write_json(directory / label / f"{result.task_name}.json", json.loads(quiet.model_dump_json()))
