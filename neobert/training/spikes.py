"""Skip steps whose loss or gradient norm is far outside its recent range.

A step is a spike when either value exceeds the mean of the last 128 sound steps by 6 standard deviations. The
window lives on the device (no host sync) and in the checkpoint. It never judges before it is full. Source: OLMo 2
(2025), SkipStepOptimizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 128
SIGMA = 6.0


class SpikeGuard:
    """Ring buffer of the last sound steps' [loss, gradient norm]; `state()` is part of a checkpoint."""

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(WINDOW, 2, dtype=torch.float64, device=device)
        self.seen = torch.zeros((), dtype=torch.int64, device=device)

    def is_spike(self, loss: Tensor, norm: Tensor, bad: Tensor) -> Tensor:
        """Whether this step is a spike (0-d bool); one that is neither that nor `bad` joins the window."""
        now = torch.stack([loss.double(), norm.double()])
        limit = self.values.mean(0) + SIGMA * self.values.std(0)
        spike = (now > limit).any() & (self.seen >= WINDOW)
        joins = ~(spike | bad)
        slot = (self.seen % WINDOW).view(1)  # one dimension: indexing with a 0-d tensor waits for its value
        self.values.index_copy_(0, slot, torch.where(joins, now, self.values.index_select(0, slot)))
        self.seen += joins
        return spike

    def state(self) -> dict[str, Tensor]:
        """The live tensors, by name, as a checkpoint stores and restores them in place."""
        return {"values": self.values, "seen": self.seen}
