"""What the training loop asks of its data, and of the module it trains.

The loop's whole position in the data is one integer, `samples_seen`. A source is a pure function from it
to batches: the same arguments give the same tensors in any process, on any number of ranks, with any
prefetching. That purity is what makes an interrupted run continue bit for bit, so a source keeps no cursor.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

Batch = dict[str, Any]
"""One micro-batch: tensors (and host constants such as `max_seqlen`) for the objective, and HOST_KEYS."""

HOST_KEYS = ("count", "tokens", "squared_lengths")
"""Host integers of a micro-batch, kept by the loop and not passed to the objective (they would recompile it):

count            number of terms in the objective's loss sum (masked tokens, pairs); required
tokens           real tokens in the micro-batch, for tokens/s and FLOPs; optional, 0
squared_lengths  sum over segments of length squared, for the attention's FLOPs; optional, 0
"""


class BatchSource(Protocol):
    """Batches as a pure function of `samples_seen`."""

    samples_per_epoch: int

    def micro_batches(
        self, samples_seen: int, global_batch_size: int, micro_batch_size: int, rank: int, world: int
    ) -> list[Batch]:
        """This rank's micro-batches of the global batch that starts at `samples_seen`.

        Every rank returns global_batch_size / (micro_batch_size x world) of them (the trainer has checked
        that this divides). Which samples form the global batch depends on neither rank nor world.
        Tensors are on the CPU; the trainer pins and moves them.
        """
        ...


class Objective(Protocol):
    """The trained `nn.Module`: computes its own loss, and says what a micro-batch costs.

    dynamic_dims: tensor names of a batch and the one dimension of each that varies, {} where none does; torch.compile
    treats every other dimension as static.
    """

    dynamic_dims: dict[str, int]

    def __call__(self, batch: Batch) -> tuple[Any, dict[str, Any]]:
        """(loss_sum, metrics): the SUM over the batch's `count` terms, and sums to be divided by the count.

        loss_sum and every metric are 0-d float32 tensors; the loop divides all of them by the global count.
        """
        ...

    def train_flops(self, host: dict[str, int]) -> float | None:
        """FLOPs of forward and backward for a micro-batch's host integers; None where unknown (MFU null)."""
        ...

    def after_update(self) -> None:
        """Called after each optimizer step, for constraints on weights; most have none and do nothing."""
        ...


def inputs_of(batch: Batch, objective: Objective) -> Batch:
    """What `objective` reads of a batch on its device, with the dimensions marked that would else recompile it."""
    inputs = {key: value for key, value in batch.items() if key not in HOST_KEYS}
    for name, dim in objective.dynamic_dims.items():
        torch._dynamo.mark_dynamic(inputs[name], dim)
    return inputs
