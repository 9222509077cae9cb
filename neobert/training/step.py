"""One optimizer step, with nothing in it that makes the host wait for the device.

The loss of a step is the sum over all its terms (masked tokens, pairs) divided by their number, over all
micro-batches and ranks: loss_sum * world / global_count, since DDP and FSDP average gradients over ranks. Any
split of a global batch then gives the same gradient. Dividing each micro-batch by its own count would weigh
tokens unequally.

A step whose loss or gradient is not finite is skipped on the device, by the optimizer's `found_inf`, after both
have been summed over ranks, so every rank skips alike and nobody waits to learn it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from neobert.config.trainer import LoopConfig
from neobert.training.distributed import Workers
from neobert.training.masking import splitmix64
from neobert.training.source import Batch, inputs_of
from neobert.training.spikes import SpikeGuard
from neobert.training.timing import Timing

SUMS = ("loss", "terms", "steps", "grad_norm")
COUNTERS = ("skipped", "skipped_in_row", "tokens")


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed Python, NumPy, torch and CUDA for one step of one rank.

    Random state is thereby a function of (seed, step, rank): nothing to save, and a step that was given up
    halfway can be redone exactly.
    """
    with np.errstate(over="ignore"):
        value = np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64)
        for part in (step, rank):
            value = splitmix64(value + np.uint64(part + 1) * np.uint64(0x9E3779B97F4A7C15))
    number = int(value[0])
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    torch.manual_seed(number)


class TrainStep:
    """Forward, backward and update of one global batch.

    Args:
        module: the objective as wrapped for this run's ranks.
        objective: the objective itself.
        optimizer: over the objective's parameters, after wrapping.
        before_update: called when gradients are ready (a checkpoint in flight finishes its copy).

    Attributes:
        window: 0-d device tensors. Sums since the last log (`loss`, the objective's metrics, `terms`, `steps`,
            `grad_norm`) and counters of the whole run (`skipped`, `skipped_in_row`, and the real `tokens` of the steps
            that were not skipped); part of a checkpoint.
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Any,
        optimizer: torch.optim.Optimizer,
        workers: Workers,
        config: LoopConfig,
        timing: Timing,
        before_update: Callable[[], None],
    ) -> None:
        self.module, self.objective, self.optimizer = module, objective, optimizer
        self.workers, self.config, self.timing, self.before_update = workers, config, timing, before_update
        # Named once, before a forward: after an evaluation FSDP2's root shows whole weights, which have no moments.
        self.named = dict(objective.named_parameters())
        self.parameters = [p for p in self.named.values() if p.requires_grad]
        self.spikes = SpikeGuard(workers.device) if config.skip_spikes else None
        self.window = {name: self._zero() for name in (*SUMS, *COUNTERS)}

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.workers.device)

    def run(self, micro_batches: list[Batch], lr: float, stop: Callable[[], bool]) -> bool:
        """One step at rate `lr`; false when `stop` said so between micro-batches, and then nothing has changed."""
        terms = self._global_terms(micro_batches)
        sums = {"tokens": self._zero() + sum(batch.get("tokens", 0) for batch in micro_batches)}
        for index, batch in enumerate(micro_batches):
            if stop():
                self.optimizer.zero_grad(set_to_none=True)
                return False
            self._forward_backward(batch, terms, index == len(micro_batches) - 1, sums)
        self.before_update()
        with self.timing.section("optimizer"):
            self._update(lr, terms, sums)
        return True

    def _forward_backward(self, batch: Batch, terms: Tensor | int, last: bool, sums: dict[str, Tensor]) -> None:
        """Add one micro-batch's gradient, and its loss and metrics to `sums`; `terms` is the global count."""
        inputs = inputs_of(batch, self.objective)
        with self.workers.no_sync(self.module, last):
            with self.timing.section("forward"), self.workers.autocast():
                loss, metrics = self.module(inputs)
            with self.timing.section("backward"):
                (loss * (self.workers.world / terms)).backward()
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums.get(name, 0) + value.detach().double()

    def _global_terms(self, micro_batches: list[Batch]) -> Tensor | int:
        """Number of loss terms in the step over all ranks, at least 1; a device tensor where ranks are several."""
        count = sum(batch["count"] for batch in micro_batches)
        if self.workers.world == 1:
            return max(count, 1)
        terms = torch.tensor(count, dtype=torch.float64).to(self.workers.device, non_blocking=True)
        return self.workers.sum_(terms).clamp_min(1)

    def _update(self, lr: float, terms: Tensor | int, sums: dict[str, Tensor]) -> None:
        """Clip, decide whether the step is sound, apply it, and add its figures to the window."""
        names = sorted(sums)
        totals = self.workers.sum_(torch.stack([sums[name] for name in names]))
        norm = self._clip()
        mean_loss = totals[names.index("loss")] / terms
        bad = ~(torch.isfinite(norm) & torch.isfinite(mean_loss))
        if self.spikes is not None:
            bad = bad | self.spikes.is_spike(mean_loss, norm, bad)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_ratio", 1.0)
        # Read by fused optimizers and ours: where it is 1 they leave weights, moments and step counts alone.
        self.optimizer.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_update()
        self._record(dict(zip(names, totals.unbind(), strict=True)), norm, terms, bad)

    def _clip(self) -> Tensor:
        limit = self.config.gradient_clipping
        if limit is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _record(self, totals: dict[str, Tensor], norm: Tensor, terms: Tensor | int, bad: Tensor) -> None:
        one = torch.ones_like(norm, dtype=torch.float64)
        figures = {**totals, "grad_norm": norm.double(), "terms": one * terms, "steps": one}
        for name, value in figures.items():
            total = self.window.setdefault(name, self._zero())
            total += torch.where(bad, torch.zeros_like(total), value)
        self.window["skipped"] += bad
        self.window["skipped_in_row"].add_(1).mul_(bad)

    def read_window(self) -> dict[str, float]:
        """Means since the last call (one host sync), and the run's counts; starts a new window.

        A window whose every step was skipped has no means: a loss of 0 would be read as one.
        """
        names = list(self.window)
        values = dict(zip(names, torch.stack([self.window[n] for n in names]).tolist(), strict=True))
        steps, terms = values.pop("steps"), max(values.pop("terms"), 1.0)
        counters = {name: values.pop(name) for name in COUNTERS}
        for name in names:
            if name not in COUNTERS:
                self.window[name].zero_()
        means = {name: total / (steps if name == "grad_norm" else terms) for name, total in values.items() if steps}
        return {**means, "skipped": counters["skipped"], "tokens": int(counters["tokens"])}

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the run by its name in a checkpoint, live (loading fills them in place).

        Tied parameters appear once. The optimizer's hyperparameters are params, not state.

        Raises:
            RuntimeError: a trained parameter has no optimizer state; a checkpoint without it could not be resumed.
        """
        tied = {name for name, _ in self.objective.named_parameters(remove_duplicate=False)} - self.named.keys()
        tensors = {f"model.{k}": v for k, v in self.objective.state_dict().items() if k not in tied}
        initialise_state(self.optimizer)
        for name, parameter in self.named.items():
            state = self.optimizer.state.get(parameter, {})
            if parameter.requires_grad and not state:
                raise RuntimeError(f"{name} is trained and has no optimizer state to save")
            tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
        tensors |= {f"window.{name}": value for name, value in self.window.items()}
        if self.spikes is not None:
            tensors |= {f"spikes.{name}": value for name, value in self.spikes.state().items()}
        return tensors


def initialise_state(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer's moments before its first step, as a template to load into.

    A step of zero gradients at rate 0 changes no weight (decay is multiplied by the rate). What it leaves is set to
    zero: the step count, and Adam's moments, which decay goes through.
    """
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
