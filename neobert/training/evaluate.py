"""Evaluation on held-out rows with masks that never change: redrawn masks would make the curve noisy.

Batches are dealt to ranks in turn and sums added up over ranks, so figures do not depend on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from neobert.training.mlm import MlmSource
from neobert.training.prefetch import move
from neobert.training.source import inputs_of


def spread(rows: int, wanted: int) -> np.ndarray:
    """int64: `wanted` of `rows` rows, evenly spread, so that each source has its share."""
    wanted = min(wanted, rows)
    return np.arange(wanted, dtype=np.int64) * rows // max(wanted, 1)


def groups_of(rows: np.ndarray, sources: dict[str, list[tuple[int, int]]]) -> dict[str, np.ndarray]:
    """`rows` by source; one group without a name where there is one source."""
    if len(sources) < 2:
        return {"": rows}
    groups = {
        name: rows[np.any([(rows >= first) & (rows < stop) for first, stop in ranges], axis=0)]
        for name, ranges in sources.items()
    }
    return {name: chosen for name, chosen in groups.items() if len(chosen)}


def evaluator(
    source: MlmSource, groups: dict[str, np.ndarray], size: int
) -> Callable[[nn.Module, int], dict[str, float]]:
    """What `train` calls: loss, perplexity and accuracy a masked token, over all rows and for each named group.

    Args:
        groups: rows to look at, by the name that their figures get.
        size: rows of a batch.
    """
    batches = [(g, rows[i : i + size]) for g, rows in enumerate(groups.values()) for i in range(0, len(rows), size)]

    def evaluate(module: nn.Module, step: int) -> dict[str, float]:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        device = next(module.parameters()).device
        objective: Any = getattr(module, "module", module)  # DDP's wrapper knows no dynamic_dims
        totals = torch.zeros(len(groups), 3, dtype=torch.float64, device=device)
        for first in range(0, len(batches), world):
            index = first + rank
            # Every rank runs every round, as a sharded model needs; a rank without a batch repeats one and counts none.
            group, rows = batches[min(index, len(batches) - 1)]
            batch = move(source.fixed(rows, size), device)
            loss, metrics = module(inputs_of(batch, objective))
            if index < len(batches):
                totals[group] += torch.stack([loss, metrics["accuracy"], torch.full_like(loss, batch["count"])])
        if world > 1:
            dist.all_reduce(totals)
        figures = _figures(totals.sum(0).tolist())
        for name, sums in zip(groups, totals.tolist(), strict=True):
            figures |= {f"{key}_{name}": value for key, value in _figures(sums).items() if name}
        return figures

    return evaluate


def _figures(sums: list[float]) -> dict[str, float]:
    loss_sum, hits, count = sums
    loss = loss_sum / max(count, 1.0)
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"loss": loss, "perplexity": perplexity, "accuracy": hits / max(count, 1.0)}
