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


def move(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; pinned and not waited for where that is a GPU."""
    if device.type == "cpu":
        return batch
    return {
        key: value.pin_memory().to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }


def device_batches(
    make: Callable[[int], list[Batch]], steps: range, device: torch.device, workers: int, ahead: int
) -> Generator[list[Batch]]:
    """The micro-batches `make(step)` of each step, in order, on `device`.

    Args:
        make: the micro-batches of a step, on the CPU; pure.
        workers: threads; 0 makes each step's when it is asked for.
        ahead: steps made ahead by each thread.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def staged(step: int) -> tuple[list[Batch], torch.cuda.Event | None]:
        batches = make(step)
        if stream is None:
            return batches, None
        with torch.cuda.stream(stream):
            moved = [move(batch, device) for batch in batches]
            event = torch.cuda.Event()
            event.record(stream)
        return moved, event

    for batches, event in prefetch(staged, steps.start, steps.stop, workers, ahead):
        if event is not None:
            current = torch.cuda.current_stream(device)
            current.wait_event(event)
            for value in (v for batch in batches for v in batch.values() if isinstance(v, torch.Tensor)):
                value.record_stream(current)  # else its memory could be reused by the copying stream
        yield batches
