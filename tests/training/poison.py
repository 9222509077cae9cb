"""A source and an objective whose loss becomes NaN at chosen steps."""

from typing import ClassVar

import torch

from tests.training import tiny


class Poisoned:
    """The tiny source; batches of `steps` (of one rank only, if given) are poisoned."""

    def __init__(self, steps, rank=None):
        self.inner, self.steps, self.rank = tiny.source(), steps, rank
        self.samples_per_epoch = self.inner.samples_per_epoch

    def micro_batches(self, samples_seen, global_batch_size, micro_batch_size, rank, world):
        batches = self.inner.micro_batches(samples_seen, global_batch_size, micro_batch_size, rank, world)
        bad = samples_seen // global_batch_size in self.steps and self.rank in (None, rank)
        for batch in batches:
            batch["poison"] = torch.tensor(float("nan") if bad else 0.0)
        return batches


class Poisonable(torch.nn.Module):
    """The tiny objective, its loss times one plus the batch's poison."""

    dynamic_dims: ClassVar[dict] = {}

    def __init__(self):
        super().__init__()
        self.inner = tiny.objective()

    def forward(self, batch):
        loss, metrics = self.inner({k: v for k, v in batch.items() if k != "poison"})
        return loss * (1 + batch["poison"]), metrics

    def after_update(self):
        self.inner.after_update()

    def train_flops(self, host):
        return None
