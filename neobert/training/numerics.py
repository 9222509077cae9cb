"""Stop a run whose steps are all being skipped, without waiting for the device at each step.

The count of skipped steps in a row lives on the device. Every few steps it is copied to pinned memory without
waiting, and looked at once the copy has arrived; so a run stops at most one period after its limit, and never
waits to learn that all is well.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SkipWatch:
    """Watches `in_row` (0-d, on the device) for `limit` skipped steps in a row."""

    def __init__(self, limit: int, in_row: Tensor) -> None:
        self.limit, self.in_row = limit, in_row
        self._arrived: torch.cuda.Event | None = None
        self._copy = torch.zeros((), dtype=in_row.dtype, pin_memory=in_row.is_cuda)

    def too_many(self, done: int) -> bool:
        """Whether the limit is known to have been reached after `done` steps.

        On several ranks all ranks must agree: the copy is then waited for, one period later, at the same step on
        each.
        """
        if not self.in_row.is_cuda:
            return self.in_row.item() >= self.limit
        if done % self.limit:
            return False
        reached = False
        if self._arrived is not None:
            self._arrived.synchronize()  # recorded `limit` steps ago: long since done
            reached = self._copy.item() >= self.limit
        self._copy.copy_(self.in_row, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record()
        return reached
