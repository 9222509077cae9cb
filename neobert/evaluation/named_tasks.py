"""MTEB's own tasks and benchmarks by name, and one clear line at once where their data cannot be had.

Without the check, a run without network would retry for minutes and fail at the first of many tasks. Algorithm: one
short request to the hub; where it fails, every task must load from the local cache, else the run ends there.
Cost: one request, or one read of each cached data set.
"""

import logging
from typing import Any

import datasets
import huggingface_hub.constants
import mteb
from mteb.abstasks import AbsTask

from neobert.config.evaluation import EvaluationConfig
from neobert.errors import PipelineError
from neobert.evaluation.local_tasks import MTEB_TYPES
from neobert.network import probe_hub

log = logging.getLogger(__name__)


def named_tasks(config: EvaluationConfig) -> list[AbsTask]:
    """Fresh objects of the tasks of ``mteb_tasks`` and ``benchmarks``, each once, of ``mteb_task_type``.

    Raises:
        PipelineError: an unknown name (with the nearest known one), or nothing of that type.
    """
    tasks: dict[str, AbsTask] = {}
    for name in config.mteb_tasks:
        tasks[name] = _known("mteb_tasks", name, mteb.get_task)
    for name in config.benchmarks:
        for task in _known("benchmarks", name, mteb.get_benchmark).tasks:
            if config.mteb_task_type in ("all", _type_of(task)):
                tasks[task.metadata.name] = task
    if config.benchmarks and not tasks:
        raise PipelineError(
            f"evaluation.mteb_task_type: {config.mteb_task_type!r} leaves no task of {', '.join(config.benchmarks)}"
        )
    return list(tasks.values())


def _type_of(task: AbsTask) -> str | None:
    return next((ours for ours, theirs in MTEB_TYPES.items() if theirs == task.metadata.type), None)


def _known(key: str, name: str, get: Any) -> Any:
    try:
        return get(name)
    except KeyError as error:
        raise PipelineError(f"evaluation.{key}: {error.args[0]}") from error


def require_data(tasks: list[AbsTask]) -> None:
    """Check that the data of ``tasks`` can be had: the hub answers, or all of it is in the local cache.

    Raises:
        PipelineError: neither; the message names the first task.
    """
    if not tasks or hub_answers():
        return
    log.warning("the Hugging Face hub does not answer: named tasks are read from the local cache")
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True
    for task in tasks:
        try:
            task.load_data()
        except Exception as error:
            raise PipelineError(
                f"evaluation: task {task.metadata.name} needs the data set {task.metadata.dataset['path']}, which is "
                f"not in the local cache, and {huggingface_hub.constants.ENDPOINT} does not answer; run with a "
                "network once, or empty evaluation.mteb_tasks and evaluation.benchmarks"
            ) from error
        task.unload_data()


def hub_answers() -> bool:
    """Does the Hugging Face hub (``HF_ENDPOINT``) answer within a few seconds?"""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        probe_hub("evaluation")
    except PipelineError:
        return False
    return True
