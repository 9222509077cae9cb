"""Main metric of one model on the local retrieval tasks: how benchmarks say what an embedding model is worth."""

from __future__ import annotations

from typing import Any

from neobert.config.evaluation import EvaluationConfig
from neobert.evaluation.local_tasks import local_task
from neobert.evaluation.run import Scores, run_tasks


def retrieval_scores(label: str, model: Any, evaluation: EvaluationConfig) -> dict[str, float]:
    """{task: score} of `model`, which MTEB and its messages call `label`.

    Raises:
        PipelineError: a task's files are missing or a task failed.
    """
    scores = Scores()
    tasks = [local_task(task) for task in evaluation.tasks if task.type == "retrieval"]
    run_tasks(scores, label, model, tasks, batch_size=evaluation.mteb_batch_size)
    scores.require_success()
    return scores.by_model[label]
