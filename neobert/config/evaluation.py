"""Section ``evaluation``: what is measured, on which tasks, beside which baselines."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from neobert.config.schema import Bounds

TaskType = Literal["retrieval", "reranking", "sts", "classification", "clustering", "pair_classification"]

HEADLINE = "retrieval"
"""The headline task's scores once more, by this name, in reports/summary.json."""

# What MTEB computes for a type; the first one is the type's default.
METRICS: dict[str, tuple[str, ...]] = {
    "retrieval": tuple(
        f"{m}_at_{k}" for m in ("ndcg", "map", "mrr", "recall", "precision") for k in (10, 1, 3, 5, 100)
    ),
    "reranking": tuple(
        f"{m}_at_{k}" for m in ("map", "ndcg", "mrr", "recall", "precision") for k in (1000, 1, 3, 5, 10)
    ),
    "sts": ("cosine_spearman", "cosine_pearson", "spearman", "pearson"),
    "classification": ("accuracy", "f1", "f1_weighted"),
    "clustering": ("v_measure", "ami"),
    "pair_classification": ("max_ap", "cosine_ap", "cosine_f1", "cosine_accuracy"),
}


@dataclass(frozen=True)
class LocalTask:
    """One task over local files."""

    name: Annotated[str, "Name of the task in the reports, unique."]
    type: Annotated[TaskType, "Kind of task; it decides which files are read and which metrics exist."]
    path: Annotated[
        str,
        "Directory with the task's files: corpus.jsonl, queries.jsonl and qrels/test.tsv (retrieval), test.jsonl and, "
        "for classification, train.jsonl (all others).",
    ]
    metric: Annotated[str | None, "The task's main metric, by MTEB's name; null takes the usual one of its type."] = (
        None
    )

    @property
    def main_metric(self) -> str:
        """The metric that is reported."""
        return self.metric or METRICS[self.type][0]

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.metric is not None and self.metric not in METRICS[self.type]:
            yield "metric", f"is not a metric of a {self.type} task ({', '.join(METRICS[self.type])})"
        if not self.name or any(c in self.name for c in "/\\ "):
            yield "name", "must be non-empty, without spaces and slashes (it becomes a file name)"
        if self.name == HEADLINE and self.type != "retrieval":
            yield (
                "name",
                f"is what reports/summary.json calls the headline task; give this one, {self.type}, another name",
            )


@dataclass(frozen=True)
class EvaluationConfig:
    """Section ``evaluation``."""

    tasks: Annotated[list[LocalTask], "Tasks over local files."] = field(default_factory=list)
    headline: Annotated[
        str | None, "The local retrieval task that stands for the run in reports/summary.json; null takes the first."
    ] = None
    mteb_tasks: Annotated[list[str], "MTEB tasks by name, e.g. STSBenchmark; their data comes from the hub."] = field(
        default_factory=list
    )
    benchmarks: Annotated[list[str], "MTEB benchmarks by name, e.g. MTEB(eng, v2); their data comes from the hub."] = (
        field(default_factory=list)
    )
    mteb_task_type: Annotated[
        Literal["all"] | TaskType, "Which type of the benchmarks' tasks is run; all runs every one."
    ] = "all"
    mteb_batch_size: Annotated[
        int,
        "Largest batch, in texts of maximum length: our encoder takes at most that many tokens, a "
        "sentence-transformers model that many texts.",
        Bounds(ge=1),
    ] = 32
    mteb_pooling: Annotated[
        Literal["mean", "cls", "max"],
        "Pooling of the models that were not trained to embed (untrained, pretrained); a fine-tuned model pools as it "
        "was trained.",
    ] = "mean"
    max_length: Annotated[
        int | None, "Tokens of a text that are read; null takes what the model allows.", Bounds(ge=3)
    ] = None
    prompts: Annotated[
        dict[str, str] | None,
        "Text put before the input, by task name, task type, query or document, or task-query (MTEB's order of "
        "preference); null takes the model's own prompts, an empty mapping none.",
    ] = None
    mixed_precision: Annotated[
        Literal["no", "bf16"], "Precision of the weights while our encoder evaluates; no is 32 bits."
    ] = "no"
    baselines: Annotated[
        list[Literal["bm25", "untrained", "pretrained"]], "What the local tasks are also run with, for comparison."
    ] = field(default_factory=lambda: ["bm25", "untrained", "pretrained"])
    models: Annotated[
        list[str],
        "Further models scored on the same tasks: sentence-transformers models by directory or hub name, or model "
        "directories of this pipeline.",
    ] = field(default_factory=list)
    trust_remote_code: Annotated[bool, "Run Python code that evaluation.models bring along."] = False

    def problems(self) -> Iterator[tuple[str, str]]:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            yield "tasks", "must have different names"
        if self.headline is not None and self.headline not in [t.name for t in self.tasks if t.type == "retrieval"]:
            yield "headline", "must name one of evaluation.tasks of type retrieval"
        elif HEADLINE in names and self.headline_task != HEADLINE:
            yield (
                "headline",
                f"makes {self.headline_task} what reports/summary.json calls {HEADLINE}, and another task has that "
                f"name; name it {HEADLINE}, or give the other task another name",
            )
        if len(set(self.baselines)) < len(self.baselines):
            yield "baselines", "must not repeat a baseline"
        labels = [model_label(path) for path in self.models]
        if len(set(labels)) < len(labels) or set(labels) & {"bm25", "untrained", "pretrained", "finetuned"}:
            yield "models", "must end in different names, none of them bm25, untrained, pretrained or finetuned"

    @property
    def headline_task(self) -> str | None:
        """Name of the task whose scores stand for the run, if there is a retrieval task."""
        return self.headline or next((t.name for t in self.tasks if t.type == "retrieval"), None)


def model_label(path: str) -> str:
    """A third-party model's name in the reports: the last part of its path or hub name."""
    return path.rstrip("/").rsplit("/", 1)[-1]
