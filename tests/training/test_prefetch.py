"""Batches on the device: in order, and the same after a pause."""

import threading

import torch

from neobert.training.prefetch import DeviceBatches
from neobert.training.timing import Timing


def test_a_pause_frees_threads_and_changes_no_batch():
    made = []

    def make(step):
        made.append(step)
        return [{"x": torch.tensor([step]), "count": step}]

    ready = DeviceBatches(make, range(3, 9), torch.device("cpu"), 2, 2, Timing(torch.device("cpu"), enabled=False))
    steps = [next(ready)[0]["count"] for _ in range(2)]
    ready.pause()
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]
    steps += [batches[0]["count"] for batches in ready]
    assert steps == [3, 4, 5, 6, 7, 8]
    assert set(made) == set(steps)
    ready.close()
