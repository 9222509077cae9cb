"""Stopping on request: SIGTERM (a scheduler's notice) and SIGINT (Ctrl-C) end a run between two micro-batches.

Ranks are told at different moments, so each poll shares the flag over gloo; the answer of one poll is read at the
next, by when it has long arrived, so agreeing costs the hot loop no waiting.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from neobert.errors import PipelineError
from neobert.training.distributed import Workers

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(PipelineError):
    """The run was told to stop and has saved; the same command goes on from there."""


class StopRequest:
    """Context manager: while it is open, SIGTERM and SIGINT only set a flag; a second SIGINT interrupts at once."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.received: str | None = None
        self._before: dict[int, Any] = {}
        self._pending: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def poll(self) -> bool:
        """Whether the run stops here; every rank polls equally often and gets the same answer."""
        if self.workers.group is None:
            return self.received is not None
        answer = False
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            answer = bool(flag.item())
        flag = torch.tensor([int(self.received is not None)])
        self._pending = (dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.workers.group, async_op=True), flag)
        return answer
