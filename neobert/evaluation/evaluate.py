"""Score the fine-tuned model, its baselines and third-party models on the same tasks, in one go.

Local tasks are run with everything, named MTEB tasks with the fine-tuned model and ``evaluation.models`` (a baseline on
a public benchmark is known already). Everything that can be wrong with the request (files, names, network) is checked
before the first text is encoded. Models are loaded one after the other, so memory holds one.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mteb.abstasks import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.models.abs_encoder import get_prompt_name
from mteb.types import PromptType

from neobert.config.evaluation import EvaluationConfig, model_label
from neobert.errors import PipelineError
from neobert.evaluation.bm25 import BM25Search
from neobert.evaluation.local_tasks import local_task
from neobert.evaluation.models import SAMPLE, EncodeSettings, finetuned, open_model, pretrained, untrained
from neobert.evaluation.named_tasks import named_tasks, require_data
from neobert.evaluation.report import TaskRow
from neobert.evaluation.run import Scores, run_tasks
from neobert.model.storage import TOKENIZER

log = logging.getLogger(__name__)
BM25_TYPES = ("retrieval", "reranking")


@dataclass(frozen=True)
class ModelPaths:
    """Where the models of one pipeline are."""

    pretrained: Path
    finetuned: Path
    export: Path


@dataclass(frozen=True)
class Contestant:
    """A model to score: loaded when its turn comes."""

    label: str
    load: Callable[[], Any]
    local_types: tuple[str, ...] | None = None
    named: bool = False


def contestants(config: EvaluationConfig, paths: ModelPaths, texts: list[str], seed: int) -> list[Contestant]:
    """Baselines, the fine-tuned model, third parties: the order of the reports' columns."""
    settings = EncodeSettings.of(config)
    tokenizer = paths.finetuned / TOKENIZER  # the pipeline's; what fine-tuning started from may be a foreign directory
    baselines = {
        "bm25": Contestant("bm25", BM25Search, BM25_TYPES),
        "untrained": Contestant("untrained", lambda: untrained(paths.pretrained, tokenizer, seed, settings)),
        "pretrained": Contestant(
            "pretrained", lambda: pretrained("contrastive.pretrained_from", paths.pretrained, tokenizer, settings)
        ),
    }
    found = [baselines[name] for name in ("bm25", "untrained", "pretrained") if name in config.baselines]
    found.append(Contestant("finetuned", lambda: finetuned(paths.finetuned, paths.export, texts, settings), named=True))
    for path in config.models:
        label = model_label(path)
        found.append(
            Contestant(label, partial(open_model, path, label, settings, config.trust_remote_code), named=True)
        )
    return found


def evaluate(config: EvaluationConfig, paths: ModelPaths, seed: int) -> tuple[Scores, list[TaskRow]]:
    """Scores of every model on every task, and the tasks as the reports name them.

    Raises:
        PipelineError: a task's files, a name, the network, an export that differs from its model, or tasks that failed
            (all of them, by name).
    """
    named = named_tasks(config)
    local = [local_task(spec) for spec in config.tasks]
    check_prompts(config.prompts, local + named)
    require_data(named)
    rows = [TaskRow(s.name, s.type, s.main_metric) for s in config.tasks]
    rows += [TaskRow(t.metadata.name, t.metadata.type, t.metadata.main_score) for t in named]
    scores = Scores()
    for contestant in contestants(config, paths, sample_texts(local), seed):
        model = contestant.load()
        specs = [s for s in config.tasks if contestant.local_types is None or s.type in contestant.local_types]
        # Fresh task objects: clustering and classification draw from the object's random state.
        tasks = [local_task(spec) for spec in specs] + (named_tasks(config) if contestant.named else [])
        log.info("%s: %d tasks", contestant.label, len(tasks))
        run_tasks(scores, contestant.label, model, tasks, batch_size=config.mteb_batch_size)
    scores.require_success()
    return scores, rows


def check_prompts(prompts: dict[str, str] | None, tasks: list[AbsTask]) -> None:
    """Refuse a prompt that no text of ``tasks`` would get, by MTEB's own choice among all of them.

    Raises:
        PipelineError: a key of ``evaluation.prompts`` that is not looked up, or only where another one goes before it.
    """
    prompts = prompts or {}
    parts = [part for task in tasks for part in (task.tasks if isinstance(task, AbsTaskAggregate) else [task])]
    used = {get_prompt_name(prompts, part.metadata, side) for part in parts for side in prompt_types(part)}
    for key in (key for key in prompts if key not in used):
        types = sorted({part.metadata.type for part in parts})
        raise PipelineError(
            f"evaluation.prompts.{key}: {prompts[key]!r} would go before no text of this run. A query gets the first "
            "of <task>-query, <task>, <type>-query, <type> and query that there is, a document likewise, and a text "
            f"of a task without queries that of <task> and <type>; types here: {', '.join(types) or 'none'}. Correct "
            "the key or remove it"
        )


def prompt_types(task: AbsTask) -> set[PromptType | None]:
    """What MTEB says of a task's texts when it has them encoded: query, document, or neither."""
    if isinstance(task, AbsTaskRetrieval):  # reranking and its kin as well
        return {PromptType.query, PromptType.document}
    return {getattr(task, f"input{i}_prompt_type", None) for i in (1, 2)}  # of pairs; the rest have none


def sample_texts(tasks: list[AbsTask]) -> list[str]:
    """Texts for the check of the export: some of each task, short and long, and one empty text."""
    texts = ["", "The quick brown fox jumps over the lazy dog (0123456789): sphinx of black quartz, judge my vow!"]
    each = max(1, SAMPLE // max(len(tasks), 1) // 2)
    for task in tasks:
        column = sorted(_texts(task), key=len)
        texts += column[:: max(1, len(column) // each)][:each] + column[-each:]
    return texts


def _texts(task: AbsTask) -> Iterator[str]:
    data: Any = task.dataset
    if "default" in data:
        for part in ("queries", "corpus"):
            yield from data["default"]["test"][part]["text"]
    else:
        yield from data["test"]["text" if "text" in data["test"].column_names else "sentence1"]
