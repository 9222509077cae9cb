"""How the sdpa backend lays out a flat stream: segments of like length padded to the longest of their group.

A group of segments becomes one [B, L] block of a padded buffer, attended in one SDPA call. On a CPU segments are
sorted by length and a new group starts where a segment is shorter than 0.7 of the group's longest; measured on two
cores over lengths 10..200, 8..60 and 30..512 this is 1.0x-1.7x as fast as one group and 1.0x-5.7x as fast as a call a
segment. On a GPU all segments form one group, padded to the batch's true longest. The layout is made once a forward
on the host and shared by all layers.

Cost: O(S log S + T) on the host; on a GPU reading ``cu_seqlens`` synchronises, which the varlen backends never do.
"""

import itertools
from typing import NamedTuple

import torch

GROUP_RATIO = 0.7


class Group(NamedTuple):
    """Rows ``start : start + rows * length`` of the padded buffer, seen as [rows, length]."""

    start: int
    rows: int
    length: int
    mask: torch.Tensor | None
    """[rows, 1, 1, length] additive, -inf at padded keys; None where every segment fills its row."""


class PaddedLayout(NamedTuple):
    """Where each token of the flat stream stands in the padded buffer."""

    slot: torch.Tensor
    """[T] int64, the token's row in the padded buffer."""
    size: int
    """Rows of the padded buffer."""
    groups: list[Group]


def _grouped(order: list[int], lengths: list[int], ratio: float) -> list[list[int]]:
    groups: list[list[int]] = []
    for index in order:
        if groups and lengths[index] >= ratio * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def padded_layout(cu_seqlens: torch.Tensor, dtype: torch.dtype) -> PaddedLayout:
    """Group the segments that ``cu_seqlens`` [S+1] delimits; masks are made in ``dtype`` on its device.

    Segments of length zero take no place.
    """
    device = cu_seqlens.device
    starts = cu_seqlens.tolist()
    lengths = [b - a for a, b in itertools.pairwise(starts)]
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i])
    grouped = _grouped(order, lengths, GROUP_RATIO if device.type == "cpu" else 0.0)
    slot = torch.empty(starts[-1], dtype=torch.int64)
    groups, row = [], 0
    for members in grouped:
        longest, first = lengths[members[0]], row
        for index in members:
            slot[starts[index] : starts[index + 1]] = torch.arange(row, row + lengths[index])
            row += longest
        mask = None
        if lengths[members[-1]] < longest:
            sizes = torch.tensor([lengths[i] for i in members])
            padded = torch.arange(longest) >= sizes[:, None]
            mask = torch.zeros(padded.shape, dtype=dtype).masked_fill_(padded, float("-inf"))[:, None, None]
            mask = mask.to(device, non_blocking=True)
        groups.append(Group(first, len(members), longest, mask))
    return PaddedLayout(slot.to(device, non_blocking=True), row, groups)


class Scatter(torch.autograd.Function):
    """[T, ...] -> zero-padded [P, ...]; the backward gathers (autograd's own would accumulate, 5x slower on a CPU)."""

    @staticmethod
    def forward(ctx, x, slot, size):
        """See the class."""
        ctx.save_for_backward(slot)
        return x.new_zeros((size, *x.shape[1:])).index_copy_(0, slot, x)

    @staticmethod
    def backward(ctx, grad):
        """See the class."""
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class Gather(torch.autograd.Function):
    """[P, ...] -> [T, ...]; slots are distinct, so the backward copies where autograd's own would accumulate."""

    @staticmethod
    def forward(ctx, x, slot):
        """See the class."""
        ctx.save_for_backward(slot)
        ctx.size = x.shape[0]
        return x.index_select(0, slot)

    @staticmethod
    def backward(ctx, grad):
        """See the class."""
        slot = ctx.saved_tensors[0]
        return grad.new_zeros((ctx.size, *grad.shape[1:])).index_copy_(0, slot, grad), None
