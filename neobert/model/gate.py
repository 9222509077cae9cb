"""The packing gate: on a real batch, packed segments must give what the same segments give alone.

Run once before a training: a kernel that leaks between segments, or positions that do not restart, would train a
worse model in silence. A few segments of the batch (the shortest, the longest, and some between) are run alone
through the same module and kernels, and their hidden states compared with the packed ones. Cost: one forward of the
batch and one of each chosen segment.
"""

import logging
from itertools import pairwise

import torch

from neobert.errors import PipelineError
from neobert.model.batch import FlatBatch
from neobert.model.encoder import Encoder

log = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest accepted relative difference (in norm) by the type that products run in: rounding, never a leak.

A leak changes hidden states by tens of percent; kernels that split a row's work differently change bf16 ones by about
one."""


@torch.no_grad()
def packing_difference(encoder: Encoder, batch: FlatBatch, segments: int = 4) -> float:
    """Largest relative difference ``|packed - alone| / |alone|`` over a few segments of ``batch``, dropout off.

    Args:
        encoder: as it will be trained, on the batch's device; call under the training's autocast.
        batch: a real packed batch with at least one segment of a token or more.
        segments: how many segments to compare.
    """
    training = encoder.training
    encoder.eval()
    try:
        packed = encoder(*batch)
        worst = 0.0
        for start, stop in _chosen(batch.cu_seqlens.tolist(), segments):
            length = stop - start
            alone = encoder(
                batch.input_ids[start:stop],
                torch.arange(length, device=batch.position_ids.device),
                torch.tensor([0, length], dtype=torch.int32, device=batch.cu_seqlens.device),
                batch.max_seqlen,
            ).float()
            difference = (packed[start:stop].float() - alone).norm() / alone.norm().clamp(min=1e-12)
            worst = max(worst, difference.item() if difference.isfinite() else float("inf"))
        return worst
    finally:
        encoder.train(training)


def packing_gate(encoder: Encoder, batch: FlatBatch, segments: int = 4) -> float:
    """Refuse to train where packing changes results; returns the measured difference for the record.

    Raises:
        PipelineError: the difference is above ``TOLERANCE``.
    """
    kind = batch.input_ids.device.type
    weights = encoder.embeddings.weight.dtype
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights
    difference, limit = packing_difference(encoder, batch, segments), TOLERANCE[dtype]
    if not difference <= limit:
        raise PipelineError(
            f"packing gate: packed segments differ from the same segments alone by {difference:.2e} (limit "
            f"{limit:.0e} in {dtype}): attention leaks between segments, or positions do not restart; set "
            "model.attn_backend to sdpa and model.kernel_backend to torch, and report the versions of torch and "
            "flash-attn"
        )
    log.info("packing gate: packed equals alone to %.1e (limit %.0e)", difference, limit)
    return difference


def _chosen(starts: list[int], count: int) -> list[tuple[int, int]]:
    """Up to ``count`` segments (start, stop), evenly spread over the order of their lengths."""
    present = sorted(((a, b) for a, b in pairwise(starts) if b > a), key=lambda s: s[1] - s[0])
    if len(present) <= count:
        return present
    step = (len(present) - 1) / max(count - 1, 1)
    return [present[round(i * step)] for i in range(count)]
