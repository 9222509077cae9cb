"""Section ``contrastive``: fine-tuning of the encoder into an embedding model."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from neobert.config.optimizer import OptimizerConfig
from neobert.config.scheduler import SchedulerConfig
from neobert.config.schema import Bounds
from neobert.config.trainer import LoopConfig, StepConfig
from neobert.errors import PipelineError


@dataclass(frozen=True)
class ContrastiveTrainerConfig(StepConfig):
    """How a contrastive step is computed, its batch, and how many there are.

    A step is one global batch whose pairs are each other's negatives, so it is not accumulated from micro-batches;
    ``contrastive.mini_batch_size`` is what saves memory.
    """

    global_batch_size: Annotated[
        int, "Pairs in one step, over all devices; a small source has fewer.", Bounds(ge=2)
    ] = 256
    max_steps: Annotated[int | None, "Optimizer steps; null follows from num_train_epochs.", Bounds(ge=1)] = None
    num_train_epochs: Annotated[
        float | None,
        "Length in passes over the pairs if every batch were full, instead of max_steps.",
        Bounds(gt=0),
    ] = 1.0

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.max_steps is None) == (self.num_train_epochs is None):
            yield "max_steps", f"and num_train_epochs ({self.num_train_epochs}): set one and make the other null"

    def steps(self, pairs: int) -> int:
        """Optimizer steps over ``pairs`` pairs, as many as they would fill batches.

        Batches of a small source, or of repeated texts, hold fewer. Counting those instead would make a run longer for
        its smallest source, which sampling_alpha repeats already, and its length known only after every batch is cut.
        """
        if self.max_steps is not None:
            return self.max_steps
        return max(1, round((self.num_train_epochs or 0.0) * pairs / self.global_batch_size))

    def loop(self, pairs: int, world: int) -> LoopConfig:
        """The loop's own configuration: the whole global batch at once, spread over ``world`` ranks.

        Raises:
            PipelineError: it cannot be spread evenly.
        """
        if self.global_batch_size % world:
            raise PipelineError(
                f"contrastive.trainer.global_batch_size ({self.global_batch_size}) must be a multiple of the number of "
                f"ranks ({world}), and so must embedding_warmup's"
            )
        return LoopConfig(
            global_batch_size=self.global_batch_size,
            per_device_train_batch_size=self.global_batch_size // world,
            max_steps=self.steps(pairs),
            **{f.name: getattr(self, f.name) for f in fields(StepConfig)},
        )


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(lr=2e-4, weight_decay=0.01)


def _scheduler() -> SchedulerConfig:
    return SchedulerConfig(name="cosine", warmup_percent=10.0)


@dataclass(frozen=True)
class EmbeddingWarmupConfig:
    """A first training of the embedding table alone, as a bag of embeddings, with the same loss."""

    rms: Annotated[
        float,
        "Root mean square of each embedding afterwards; the larger, the less the transformer's blocks say at first.",
        Bounds(gt=0),
    ] = 1.0
    trainer: Annotated[ContrastiveTrainerConfig, "Length and batch of the warm-up."] = field(
        default_factory=ContrastiveTrainerConfig
    )
    optimizer: Annotated[OptimizerConfig, "Its optimizer."] = field(
        default_factory=lambda: OptimizerConfig(lr=5e-3, betas=[0.9, 0.99], weight_decay=0.0)
    )
    scheduler: Annotated[SchedulerConfig, "Its learning rate's course."] = field(
        default_factory=lambda: SchedulerConfig(name="linear", warmup_percent=5.0)
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.optimizer.name in ("muon", "muonclip"):
            yield "optimizer.name", "is for the matrices of an encoder, and the warm-up trains embeddings; take adamw"


@dataclass(frozen=True)
class ContrastiveConfig:
    """Loss, batches, pooling and training of the embedding model."""

    pretrained_from: Annotated[
        str,
        "The model directory that fine-tuning starts from: the longer context's, another of this pipeline, or a "
        "Hugging Face directory (EuroBERT, NeoBERT, an export).",
    ] = "models/long_context"
    allow_random_weights: Annotated[
        bool, "Start from random weights of that model's shape instead: an experiment's baseline, else refused."
    ] = False
    pooling: Annotated[Literal["mean", "cls", "max"], "How token vectors become one."] = "mean"
    normalize: Annotated[bool, "Give the model's embeddings unit length (the loss uses cosines either way)."] = True
    token_weights: Annotated[
        Literal["none", "ones", "idf"],
        "Train one weight a token id for pooling: none, from ones, or from inverse document frequencies in the pairs.",
    ] = "none"
    loss: Annotated[
        Literal["MultipleNegativesRankingLoss", "supcon"],
        "Rank the positive before all other documents; or pull all texts of a label together (sources need `label`).",
    ] = "MultipleNegativesRankingLoss"
    matryoshka_dims: Annotated[
        list[int], "Also apply the loss to embeddings cut to these widths, beside the whole; empty does not."
    ] = field(default_factory=list)
    pretraining_prob: Annotated[
        float, "Share of the steps that take pretraining text with itself as positive (SimCSE).", Bounds(ge=0, le=1)
    ] = 0.0
    dropout: Annotated[float, "Dropout while fine-tuning; SimCSE needs some.", Bounds(ge=0, lt=1)] = 0.0
    scale: Annotated[float, "Cosines are multiplied by it: 1 / temperature.", Bounds(gt=0)] = 20.0
    symmetric: Annotated[bool, "Also rank the queries for each positive; the two losses are averaged."] = False
    false_negative_margin: Annotated[
        float | None,
        "Ignore a candidate whose cosine exceeds the positive's by more than this; null ignores none.",
        Bounds(ge=0, le=2),
    ] = None
    max_negatives: Annotated[int, "Hard negatives used of each pair.", Bounds(ge=0)] = 8
    sampling_alpha: Annotated[
        float, "Sources are sampled in proportion to (their pairs) ** alpha: 1 by size, 0 equally.", Bounds(ge=0, le=1)
    ] = 0.5
    batch_sizes: Annotated[
        dict[str, int], "Pairs in a step of one source, by source name, where not trainer.global_batch_size."
    ] = field(default_factory=dict)
    mini_batch_size: Annotated[
        int | None,
        "Texts encoded at once (GradCache): memory of so many, same gradients, a second forward. Null: all at once.",
        Bounds(ge=1),
    ] = None
    gather_across_devices: Annotated[bool, "Negatives come from the whole global batch, not from one device."] = True
    eval_pairs: Annotated[int, "Validation pairs among which recall is measured.", Bounds(ge=1)] = 1000
    load_best_model_at_end: Annotated[
        bool, "Keep the best of all evaluations, the one before the first step included, rather than the last."
    ] = True
    metric_for_best_model: Annotated[
        Literal["loss", "accuracy", "recall_at_10", "mrr_at_10"], "What the best model is best by, on held-out pairs."
    ] = "loss"
    embedding_warmup: Annotated[
        EmbeddingWarmupConfig | None, "Train the embedding table first (needs token_weights); null does not."
    ] = None
    trainer: Annotated[ContrastiveTrainerConfig, "Length and batch."] = field(default_factory=ContrastiveTrainerConfig)
    optimizer: Annotated[OptimizerConfig, "The optimizer."] = field(default_factory=_optimizer)
    scheduler: Annotated[SchedulerConfig, "The learning rate's course."] = field(default_factory=_scheduler)

    def problems(self) -> Iterator[tuple[str, str]]:
        for name, size in self.batch_sizes.items():
            if not 2 <= size <= self.trainer.global_batch_size:
                yield "batch_sizes", f"[{name}] must be from 2 to trainer.global_batch_size"
        if self.pretraining_prob > 0 and self.dropout == 0:
            yield "pretraining_prob", "needs contrastive.dropout: without it a text's two encodings are the same"
        if self.loss == "supcon" and (self.symmetric or self.false_negative_margin is not None):
            yield "loss", "supcon is symmetric already and knows its positives; remove symmetric and the margin"
        if any(dim < 1 for dim in self.matryoshka_dims):
            yield "matryoshka_dims", "must be positive"
        if self.embedding_warmup is not None and self.pooling != "mean":
            yield (
                "embedding_warmup",
                f"is a mean of embeddings, which does not fit pooling {self.pooling}; make it null",
            )
        if self.embedding_warmup is not None and self.token_weights == "none":
            yield (
                "embedding_warmup",
                "puts the lengths of embeddings into token weights, and token_weights is none; take ones or idf, or "
                "make the warm-up null",
            )
