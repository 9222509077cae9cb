"""Evaluation on held-out rows with masks that never change: redrawn masks would make the curve noisy.

Batches are dealt to ranks in turn; sums are added up over ranks, so figures do not depend on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from neobert.training.mlm import MlmSource
from neobert.training.prefetch import move
from neobert.training.source import HOST_KEYS


def evaluator(
    source: MlmSource, rows: int, micro_batch_size: int, max_batches: int | None
) -> Callable[[nn.Module, int], dict[str, float]]:
    """What `train` calls: {"loss", "perplexity", "accuracy"} a masked token over the first `rows` rows of `source`.

    Args:
        max_batches: look at no more batches of `micro_batch_size` rows than this.
    """
    batches = math.ceil(rows / micro_batch_size)
    batches = batches if max_batches is None else min(batches, max_batches)

    def evaluate(module: nn.Module, step: int) -> dict[str, float]:
        ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        device = next(module.parameters()).device
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        for first in range(0, batches, ranks[1]):
            index = first + ranks[0]
            # Every rank runs every round, as a sharded model needs; a rank without a batch repeats one and counts none.
            batch = move(source.fixed(min(index, batches - 1), micro_batch_size, rows), device)
            loss, metrics = module({key: value for key, value in batch.items() if key not in HOST_KEYS})
            if index < batches:
                totals += torch.stack([loss, metrics["accuracy"], loss.new_tensor(float(batch["count"]))]).double()
        if ranks[1] > 1:
            dist.all_reduce(totals)
        loss_sum, hits, count = totals.tolist()
        loss_mean = loss_sum / max(count, 1.0)
        perplexity = math.exp(loss_mean) if loss_mean < 700 else math.inf
        return {"loss": loss_mean, "perplexity": perplexity, "accuracy": hits / max(count, 1.0)}

    return evaluate
