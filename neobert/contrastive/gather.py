"""Embeddings of all ranks, with gradients back to the rank that made them.

Ranks may hold different numbers of rows (ragged negatives): each is padded to the largest, which every rank knows
because it knows the whole batch. The backward sums over ranks what each of them wants changed, and keeps its own.
Cost: one all-gather of the embeddings and one all-reduce of their gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, rank: int, sizes: Sequence[int]) -> Tensor:
        ctx.rank, ctx.sizes = rank, sizes
        padded = local.new_zeros(max(sizes), *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        grad = grad.contiguous()
        dist.all_reduce(grad)
        start = sum(ctx.sizes[: ctx.rank])
        return grad[start : start + ctx.sizes[ctx.rank]], None, None


def gather_rows(local: Tensor, rank: int, sizes: Sequence[int]) -> Tensor:
    """[sizes[rank], H] on each rank -> [sum(sizes), H] on all, in rank order; alone it is ``local`` itself."""
    if len(sizes) == 1 or max(sizes) == 0:
        return local
    return _Gather.apply(local, rank, tuple(sizes))
