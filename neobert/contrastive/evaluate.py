"""Held-out figures during contrastive training: loss and recall among the validation pairs.

All validation pairs form one batch, so a query ranks its positive among as many documents as there are pairs. Cost:
one forward over their texts.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from neobert.contrastive.pairs import Pairs
from neobert.contrastive.source import collate_pairs
from neobert.training.prefetch import move
from neobert.training.source import HOST_KEYS

CHUNK_TEXTS = 256


def make_evaluate(
    pairs: Pairs, limit: int, *, pad_token_id: int, max_negatives: int
) -> Callable[[nn.Module, int], dict[str, float]]:
    """``evaluate(objective, step)`` over at most ``limit`` pairs, spread evenly over the split."""
    rows = np.unique(np.linspace(0, pairs.rows - 1, min(limit, pairs.rows)).round().astype(np.int64))
    batch = collate_pairs(pairs.take(rows, max_negatives), pad_token_id=pad_token_id, mini_batch_size=CHUNK_TEXTS)
    inputs = {key: value for key, value in batch.items() if key not in HOST_KEYS}

    def evaluate(objective: nn.Module, step: int) -> dict[str, float]:
        device = next(objective.parameters()).device
        loss, sums = objective(move(inputs, device))
        return {name: float(total) / len(rows) for name, total in {"loss": loss, **sums}.items()}

    return torch.no_grad()(evaluate)
