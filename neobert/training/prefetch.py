"""Batches on the device ahead of their use.

A thread builds the next steps' batches, pins them and copies them on a stream of its own while the previous step
computes; the consumer makes its stream wait for an event, and the host for nothing. The source is pure in
samples_seen, so a batch that was made ahead and never used costs nothing on resuming.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch

from neobert.packing.loader import prefetch
from neobert.training.source import Batch
from neobert.training.timing import Timing


def move(batch: Batch, device: torch.device, pin: bool = True) -> Batch:
    """The batch with its tensors on `device`; where that is a GPU, pinned and not waited for (or neither)."""
    if device.type == "cpu":
        return batch
    return {
        key: (value.pin_memory() if pin else value).to(device, non_blocking=pin)
        if isinstance(value, torch.Tensor)
        else value
        for key, value in batch.items()
    }


class DeviceBatches:
    """The micro-batches `make(step)` of each step, in order, on `device`.

    Args:
        make: the micro-batches of a step, on the CPU; pure.
        workers: threads; 0 makes each step's when it is asked for.
        ahead: steps made ahead by each thread.
        timing: gets the section host_to_device, on a GPU.
        pin: copy to a GPU from pinned memory, without waiting.
    """

    def __init__(
        self,
        make: Callable[[int], list[Batch]],
        steps: range,
        device: torch.device,
        workers: int,
        ahead: int,
        timing: Timing,
        pin: bool = True,
    ) -> None:
        self.make, self.device, self.workers, self.ahead, self.pin = make, device, workers, ahead, pin
        self.timing = timing
        self.next_step, self.stop = steps.start, steps.stop
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: Generator[tuple[list[Batch], torch.cuda.Event | None]] | None = None

    def __iter__(self) -> DeviceBatches:
        return self

    def __next__(self) -> list[Batch]:
        if self._ready is None:
            self._ready = prefetch(self._staged, self.next_step, self.stop, self.workers, self.ahead)
        batches, event = next(self._ready)
        self.next_step += 1
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for value in (v for batch in batches for v in batch.values() if isinstance(v, torch.Tensor)):
                value.record_stream(current)  # else its memory could be reused by the copying stream
        return batches

    def _staged(self, step: int) -> tuple[list[Batch], torch.cuda.Event | None]:
        batches = self.make(step)
        if self.stream is None:
            return batches, None
        with torch.cuda.stream(self.stream):
            with self.timing.section("host_to_device"):
                moved = [move(batch, self.device, self.pin) for batch in batches]
            event = torch.cuda.Event()
            event.record(self.stream)
        return moved, event

    def pause(self) -> None:
        """Stop the threads and let go of what they made; the next step starts them again, with the same batches."""
        if self._ready is not None:
            self._ready.close()
            self._ready = None

    def close(self) -> None:
        """Stop for good."""
        self.pause()
