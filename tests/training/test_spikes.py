"""Spike skipping against a plain reference, in a run, across a resume, and without waiting for the device."""

import statistics

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from neobert.training import spikes
from neobert.training.signals import Preempted
from neobert.training.spikes import SpikeGuard
from tests.training import tiny
from tests.training.test_resume import Interrupting

CPU = torch.device("cpu")


def reference(rows, window=128, sigma=6.0):
    """Which (loss, norm) are spikes, by the definition: lists and Python's statistics."""
    kept, verdicts = [], []
    for row in rows:
        columns = list(zip(*kept[-window:], strict=True)) if len(kept) >= window else []
        limits = [statistics.mean(column) + sigma * statistics.stdev(column) for column in columns]
        verdicts.append(any(value > limit for value, limit in zip(row, limits, strict=False)))
        if not verdicts[-1]:
            kept.append(row)
    return verdicts


def test_it_judges_as_the_definition_does():
    generator = torch.Generator().manual_seed(0)
    rows = (3 + 0.1 * torch.randn(300, 2, generator=generator)).tolist()
    for step, column in ((100, 0), (140, 0), (141, 1), (299, 1)):  # the first comes before the window is full
        rows[step][column] = 40.0
    guard, sound = SpikeGuard(CPU), torch.tensor(False)
    verdicts = [bool(guard.is_spike(torch.tensor(loss), torch.tensor(norm), sound)) for loss, norm in rows]
    assert verdicts == reference(rows)
    assert sum(verdicts) >= 2


def test_a_bad_step_does_not_join_the_window():
    guard = SpikeGuard(CPU)
    guard.is_spike(torch.tensor(float("nan")), torch.tensor(1.0), torch.tensor(True))
    assert guard.seen.item() == 0
    assert torch.equal(guard.values, torch.zeros_like(guard.values))


def test_nothing_is_read_back_from_the_device():
    """A fake tensor has no values: reading one, which on a GPU makes the host wait, raises."""
    with FakeTensorMode():
        guard = SpikeGuard(CPU)
        guard.is_spike(torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.bool))


class Spiking(Interrupting):
    """The tiny source with one batch whose labels are shuffled far from what was learnt."""

    def __init__(self, at, stop=10**9):
        super().__init__(stop)
        self.at = at

    def micro_batches(self, samples_seen, global_batch_size, *others):
        batches = super().micro_batches(samples_seen, global_batch_size, *others)
        if samples_seen == self.at * global_batch_size:
            for batch in batches:
                counted = batch["labels"] >= 0
                batch["labels"] = torch.where(counted, (batch["labels"] * 7 + 3) % tiny.VOCAB, batch["labels"])
        return batches


def test_a_spike_is_skipped_and_the_window_survives_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(spikes, "WINDOW", 6)
    monkeypatch.setattr(spikes, "SIGMA", 6.0)
    options = {"trainer": {"skip_spikes": True, "max_steps": 40}, "runtime": {"num_workers": 0, "logging_steps": 1}}
    options["scheduler"] = {"name": "constant"}
    undisturbed = tiny.run(tmp_path / "a", source=Spiking(30), **options)
    skipped = [row["skipped"] for row in undisturbed.history]
    assert skipped[30] == skipped[29] + 1
    with pytest.raises(Preempted):
        tiny.run(tmp_path / "b", source=Spiking(30, stop=29), **options)
    resumed = tiny.run(tmp_path / "b", source=Spiking(30), **options)
    assert resumed.history == undisturbed.history
    assert tiny.same_state(resumed.state_dict, undisturbed.state_dict)
