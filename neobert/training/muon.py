"""Muon: momentum whose matrices are orthogonalised before they are applied; AdamW for everything else.

    B <- mu B + (1 - mu) G        G' = (1 - mu) G + mu B  (Nesterov)        W <- (1 - lr decay) W - lr r O(G')

O is ``neobert.training.orthogonalize``: all directions of the update get the same length, also those that the
gradient rarely has. r depends on a matrix's shape (``adjust_lr_fn``): Jordan's, or Moonshot's 0.2 sqrt(max(rows,
columns)), which gives updates AdamW's root mean square, so that AdamW's rate and decay serve for both.
Sources: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982.

Matrices of one shape are updated as one stack, by a few batched products. Several linear maps stored as one matrix
(``parts``: q, k and v) are orthogonalised each on its own: together they would have to share their singular values,
and the part with the largest gradient would take them. In a sharded model momentum stays where the weights are; the
stack changes from rows of all matrices to all rows of some and back (two all-to-alls in the products' type), so each
matrix is orthogonalised on one rank of its shards. Under DDP every rank does the same work.

State: one tensor of a weight's size for a matrix, where AdamW has two. torch.optim.Muon has neither stacks, parts,
shards, nor steps that are skipped on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Shard

from neobert.config.optimizer import MuonSettings
from neobert.training.orthogonalize import orthogonalize
from neobert.training.qk_clip import QkClip

STACKED = 1 << 26
"""Elements of a stack, at most: 256 MiB in fp32, of which an update holds about four."""


class Muon(torch.optim.Optimizer):
    """Muon over some parameters and AdamW over the others, as one optimizer.

    Args:
        groups: dictionaries with ``params`` (2-D), ``lr``, ``weight_decay`` and ``parts``, how many matrices of equal
            size each parameter holds one above the other.
        adamw: over all other parameters; its groups and its state become this optimizer's too.
        settings: momentum and orthogonalisation.
        clip: called after each update (MuonClip), or None.

    Where ``found_inf`` (0-d fp32 on the device, as fused optimizers read it) is 1, a step changes nothing, and the host
    need not know.
    """

    found_inf: Tensor | None = None

    def __init__(
        self, groups: list[dict], adamw: torch.optim.AdamW, settings: MuonSettings, clip: QkClip | None = None
    ) -> None:
        super().__init__(groups, {"parts": 1})
        self.settings, self.adamw, self.clip = settings, adamw, clip
        self.matrices = list(self.param_groups)
        self.param_groups.extend(adamw.param_groups)
        adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        device = self.matrices[0]["params"][0].device
        bad = self.found_inf if self.found_inf is not None else torch.zeros((), device=device)
        for group in self.matrices:
            for parameters in _stacks([p for p in group["params"] if p.grad is not None]):
                self._update(parameters, group["lr"], group["weight_decay"], group["parts"], 1 - bad)
        self.adamw.found_inf = bad  # type: ignore[attr-defined]
        self.adamw.step()
        if self.clip is not None:
            self.clip.apply(bad == 0)

    def _update(self, parameters: list[Tensor], lr: float, decay: float, parts: int, sound: Tensor) -> None:
        """Update parameters of one shape; ``sound`` is 1, or 0 where nothing may change."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        weights = _local(parameters)
        buffers = _local([self.state[p]["momentum_buffer"] for p in parameters])
        gradients = torch.stack(_local([p.grad for p in parameters if p.grad is not None]))
        gradients = torch.where(sound > 0, gradients, 0)  # not finite in a step that is skipped
        momentum = torch.stack(buffers).lerp_(gradients, (1 - self.settings.momentum) * sound)
        torch._foreach_copy_(buffers, momentum.unbind())
        update = gradients.lerp_(momentum, self.settings.momentum) if self.settings.nesterov else momentum
        # Tensor cores' type where there are some; the polynomials bear it.
        update = update.to(torch.bfloat16) if update.is_cuda else update
        update = self._orthogonalized(update, parameters[0], parts).to(momentum.dtype)
        rate = lr * shape_factor(self.settings.adjust_lr_fn, parameters[0].shape[0] // parts, parameters[0].shape[1])
        torch._foreach_mul_(weights, 1 - lr * decay * sound)
        torch._foreach_add_(weights, (update * (-rate * sound)).unbind())

    def _orthogonalized(self, update: Tensor, like: Tensor, parts: int) -> Tensor:
        """[B, rows here, columns], a stack of parameters like ``like``, orthogonalised part by part."""
        if isinstance(like, DTensor):
            rows = [Shard(1) if p.is_shard() else p for p in like.placements]
            whole = [Shard(0) if p.is_shard() else p for p in like.placements]
            matrices = _moved(update, len(update), like, rows, whole)
            return _moved(self._orthogonalized_whole(matrices, parts), len(update), like, whole, rows)
        return self._orthogonalized_whole(update, parts)

    def _orthogonalized_whole(self, matrices: Tensor, parts: int) -> Tensor:
        _, rows, columns = matrices.shape
        each = matrices.reshape(-1, rows // parts, columns)
        return orthogonalize(each, self.settings.orthogonalization, self.settings.ns_steps).reshape(matrices.shape)


def shape_factor(adjust_lr_fn: str, rows: int, columns: int) -> float:
    """What a matrix's rate is multiplied by; the names are torch.optim.Muon's."""
    if adjust_lr_fn == "original":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def _stacks(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one shape, at most STACKED elements of them."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        by_shape.setdefault(parameter.shape, []).append(parameter)
    for shape, same in by_shape.items():
        size = max(1, STACKED // shape.numel())
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _local(tensors: list[Tensor]) -> list[Tensor]:
    """The rows that this rank holds."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def _moved(stack: Tensor, count: int, like: DTensor, source: list[Placement], target: list[Placement]) -> Tensor:
    """This rank's part of ``count`` stacked parameters like ``like`` under ``target``, given that under ``source``."""
    rows, columns = like.shape
    spread = DTensor.from_local(
        stack.contiguous(),
        like.device_mesh,
        source,
        run_check=False,
        shape=torch.Size((count, rows, columns)),
        stride=(rows * columns, columns, 1),
    )
    return spread.redistribute(placements=target).to_local()
