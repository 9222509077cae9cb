"""Section ``glue``: fine-tuning on the nine GLUE tasks (an optional stage)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from neobert.config.optimizer import OptimizerConfig
from neobert.config.scheduler import SchedulerConfig
from neobert.config.schema import Bounds

TaskName = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
METRICS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews_correlation",),
    "sst2": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "stsb": ("pearson", "spearmanr"),
    "qqp": ("accuracy", "f1"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}


@dataclass(frozen=True)
class GlueTrainerConfig:
    """``glue.trainer``."""

    num_train_epochs: Annotated[int, "Passes over the training examples, at most.", Bounds(ge=1)] = 3
    per_device_train_batch_size: Annotated[int, "Examples an update.", Bounds(ge=1)] = 32
    per_device_eval_batch_size: Annotated[int, "Examples a batch of validation.", Bounds(ge=1)] = 128
    eval_steps: Annotated[int | None, "Updates between validations; null validates after each epoch.", Bounds(ge=1)] = (
        None
    )
    early_stopping: Annotated[
        int, "Stop after this many validations without a better result; 0 never stops early.", Bounds(ge=0)
    ] = 0
    metric_for_best_model: Annotated[
        str | None,
        "The metric that chooses the best checkpoint; null takes the mean of the task's metrics, GLUE's own score.",
    ] = None
    gradient_clipping: Annotated[float | None, "Largest norm of the gradient; null does not clip.", Bounds(gt=0)] = 1.0
    mixed_precision: Annotated[Literal["no", "bf16"], "Precision of the forward and backward pass."] = "no"


@dataclass(frozen=True)
class GlueConfig:
    """Section ``glue``."""

    task_name: Annotated[Literal["all"] | TaskName | list[TaskName], "Which tasks: all, one, or a list."] = "all"
    dataset_path: Annotated[
        str | None,
        "Directory with <task>/train.jsonl and <task>/validation.jsonl (mnli: validation_matched and "
        "validation_mismatched) in GLUE's columns; null takes nyu-mll/glue from the hub.",
    ] = None
    pretrained_model_path: Annotated[
        str, "The model directory, of this pipeline or Hugging Face's, that is fine-tuned."
    ] = "models/long_context"
    allow_random_weights: Annotated[
        bool, "Start from random weights of that shape instead: what the pretraining is worth."
    ] = False
    transfer_from_task: Annotated[
        TaskName | None, "Fine-tune the encoder on this task first, and start the others from there."
    ] = None
    num_seeds: Annotated[
        int, "Runs of each task, with different seeds; the report gives mean and deviation.", Bounds(ge=1)
    ] = 1
    max_seq_length: Annotated[int, "Tokens of an example that are read.", Bounds(ge=8)] = 128
    pooling: Annotated[Literal["mean", "cls", "max"], "How hidden states become one vector for the classifier."] = (
        "mean"
    )
    classifier_dropout: Annotated[float, "Dropped share before the classifier.", Bounds(ge=0, lt=1)] = 0.1
    classifier_init_range: Annotated[float, "The classifier starts uniform in plus or minus this.", Bounds(gt=0)] = 0.02
    trainer: Annotated[GlueTrainerConfig, "The fine-tuning loop."] = field(default_factory=GlueTrainerConfig)
    optimizer: Annotated[OptimizerConfig, "The update rule."] = field(
        default_factory=lambda: OptimizerConfig(lr=3e-5, betas=[0.9, 0.999], weight_decay=0.01)
    )
    scheduler: Annotated[SchedulerConfig, "The learning rate's course."] = field(
        default_factory=lambda: SchedulerConfig(name="linear", warmup_percent=6.0, final_lr_ratio=0.0)
    )

    def task_names(self) -> list[str]:
        """The tasks to run, in GLUE's order."""
        wanted = [self.task_name] if isinstance(self.task_name, str) else self.task_name
        return [name for name in METRICS if name in wanted or "all" in wanted]

    def problems(self) -> Iterator[tuple[str, str]]:
        if isinstance(self.task_name, list) and not self.task_name:
            yield "task_name", "names no task"
        metric = self.trainer.metric_for_best_model
        tasks = [*self.task_names(), *([self.transfer_from_task] if self.transfer_from_task else [])]
        for name in dict.fromkeys(tasks):
            if metric is not None and metric not in METRICS[name]:
                yield "trainer.metric_for_best_model", f"is not a metric of {name} ({', '.join(METRICS[name])})"
        if self.task_names() == [self.transfer_from_task]:
            yield "transfer_from_task", "is the only task of task_name; there is nothing to transfer to"
