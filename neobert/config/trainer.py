"""`trainer.*`: what one optimizer step is, how many there are, and how precisely they are computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from neobert.config.schema import Bounds


@dataclass(frozen=True)
class StepConfig:
    """How a step is computed, in every training section (pretraining, longer context, contrastive)."""

    mixed_precision: Annotated[
        Literal["no", "fp32", "bf16"], "Precision of matrix products: no and fp32 are single precision."
    ] = "no"
    torch_compile: Annotated[
        bool, "Compile the model and its loss with torch.compile (contrastive: the encoder, for any batch size)."
    ] = False
    torch_compile_backend: Annotated[Literal["inductor", "aot_eager", "eager"], "Backend of torch.compile."] = (
        "inductor"
    )
    gradient_checkpointing: Annotated[
        bool, "Recompute each layer in the backward pass: less memory, about a third more work."
    ] = False
    gradient_clipping: Annotated[
        float | None, "Largest gradient norm; larger ones are scaled down to it. Null does not clip.", Bounds(gt=0)
    ] = 1.0
    max_skipped_steps: Annotated[
        int, "Stop after this many skipped steps in a row (non-finite loss or gradient).", Bounds(ge=1)
    ] = 10
    deterministic: Annotated[
        bool, "Use only bitwise repeatable kernels on a GPU (slower; a CPU run is always repeatable)."
    ] = False
    eval_steps: Annotated[
        int | None, "Evaluate every this many steps; null evaluates at the end only.", Bounds(ge=1)
    ] = None


@dataclass(frozen=True)
class LoopConfig(StepConfig):
    """All that the training loop reads."""

    global_batch_size: Annotated[int, "Samples in one optimizer step, over all devices.", Bounds(ge=1)] = 32
    per_device_train_batch_size: Annotated[
        int, "Samples a device computes at once; lower it when memory runs out.", Bounds(ge=1)
    ] = 16
    gradient_accumulation_steps: Annotated[
        int | None, "Micro-batches in a step; null follows from the batch sizes and devices.", Bounds(ge=1)
    ] = None
    max_steps: Annotated[int, "Optimizer steps of the whole run.", Bounds(ge=1)] = 200
    torch_compile_dynamic: Annotated[
        bool | None, "Compile for any shape (true), for each shape (false), or static with one dynamic dimension."
    ] = None
    skip_spikes: Annotated[
        bool, "Also skip a step whose loss or gradient norm exceeds the last 128 steps' mean by 6 sigma."
    ] = False

    def problems(self) -> Iterable[tuple[str, str]]:
        """Contradictions that need no device to be seen."""
        if self.global_batch_size % self.per_device_train_batch_size:
            yield (
                "global_batch_size",
                f"must be a multiple of per_device_train_batch_size ({self.per_device_train_batch_size})",
            )
        elif self.gradient_accumulation_steps is not None:
            micro = self.per_device_train_batch_size * self.gradient_accumulation_steps
            if self.global_batch_size % micro:
                yield (
                    "gradient_accumulation_steps",
                    f"x per_device_train_batch_size ({micro}) must divide global_batch_size "
                    f"({self.global_batch_size}); set it to null to let it follow",
                )


@dataclass(frozen=True)
class TrainerConfig(LoopConfig):
    """`trainer` and `longer_context.trainer`: the loop's keys and those of masked language modelling."""

    masked_logits_only_loss: Annotated[
        bool, "Compute logits at masked positions only; false computes all of them (ablation)."
    ] = True
    masked_accuracy: Annotated[bool, "Also log the accuracy on masked training tokens."] = False
    eval_max_batches: Annotated[
        int | None, "Evaluate at most this many batches of per_device_train_batch_size rows.", Bounds(ge=1)
    ] = None
