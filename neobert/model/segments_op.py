"""The sdpa backend as one opaque operator, so that a compiled graph stays whole.

Laying out segments reads ``cu_seqlens`` on the host, which would break a graph; inside a custom operator it does not.
The backward recomputes the softmax (Dao et al. 2022, arXiv:2205.14135, without tiling), a bounded block of segments
at a time. Eager code takes ``padded_attention`` instead, whose SDPA kernels are faster. A second operator measures the
largest logits, in eager code too.
"""

import torch
import torch.nn.functional as F

from neobert.model.segments import Group, padded_layout

SCORES_LIMIT = 1 << 24
"""Scores [rows, N, length, length] held at once by the backward."""


def _blocks(padded: torch.Tensor, group: Group, heads: int):
    """(first, last, q, k, v, mask) of each block of a group, [rows, N, length, D]."""
    step = max(1, SCORES_LIMIT // (heads * group.length**2))
    rows = padded[group.start : group.start + group.rows * group.length]
    rows = rows.view(group.rows, group.length, *padded.shape[1:])
    for first in range(0, group.rows, step):
        part = rows[first : first + step]
        mask = None if group.mask is None else group.mask[first : first + step]
        yield part.permute(2, 0, 3, 1, 4), mask, group.start + first * group.length, part.shape[0] * group.length


@torch.library.custom_op("neobert::segmented_attention", mutates_args=())
def segmented_attention(qkv: torch.Tensor, cu_seqlens: torch.Tensor, scale: float) -> torch.Tensor:
    """[T, 3, N, D], [S+1] -> [T, N, D]: attention within each segment."""
    layout = padded_layout(cu_seqlens, qkv.dtype)
    padded = qkv.new_zeros((layout.size, *qkv.shape[1:])).index_copy_(0, layout.slot, qkv)
    out = qkv.new_empty((layout.size, *qkv.shape[2:]))
    for group in layout.groups:
        for (q, k, v), mask, start, size in _blocks(padded, group, qkv.shape[2]):
            block = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
            out[start : start + size] = block.transpose(1, 2).reshape(size, *qkv.shape[2:])
    return out.index_select(0, layout.slot)


@segmented_attention.register_fake
def _(qkv, cu_seqlens, scale):
    return qkv.new_empty((qkv.shape[0], *qkv.shape[2:]))


@torch.library.custom_op("neobert::segmented_attention_backward", mutates_args=())
def segmented_attention_backward(
    grad: torch.Tensor, qkv: torch.Tensor, cu_seqlens: torch.Tensor, scale: float
) -> torch.Tensor:
    """Gradient [T, 3, N, D] for ``grad`` [T, N, D]."""
    layout = padded_layout(cu_seqlens, qkv.dtype)
    padded = qkv.new_zeros((layout.size, *qkv.shape[1:])).index_copy_(0, layout.slot, qkv)
    grad_padded = grad.new_zeros((layout.size, *grad.shape[1:])).index_copy_(0, layout.slot, grad)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    result = torch.empty_like(padded)
    for group in layout.groups:
        for (q, k, v), mask, start, size in _blocks(padded, group, qkv.shape[2]):
            upstream = grad_padded[start : start + size].view(q.shape[0], q.shape[2], *grad.shape[1:]).transpose(1, 2)
            scores = (q @ k.transpose(-1, -2)).to(wide) * scale
            weights = (scores if mask is None else scores + mask).softmax(-1)
            d_weights = (upstream @ v.transpose(-1, -2)).to(wide)
            d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True)) * scale
            weights, d_scores = weights.to(q.dtype), d_scores.to(q.dtype)
            grads = torch.stack((d_scores @ k, d_scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ upstream))
            result[start : start + size] = grads.permute(1, 3, 0, 2, 4).reshape(size, *qkv.shape[1:])
    return result.index_select(0, layout.slot)


@segmented_attention_backward.register_fake
def _(grad, qkv, cu_seqlens, scale):
    return torch.empty_like(qkv)


def _setup(ctx, inputs, output):
    qkv, cu_seqlens, ctx.scale = inputs
    ctx.save_for_backward(qkv, cu_seqlens)


def _backward(ctx, grad):
    qkv, cu_seqlens = ctx.saved_tensors
    return segmented_attention_backward(grad.contiguous(), qkv, cu_seqlens, ctx.scale), None, None


segmented_attention.register_autograd(_backward, setup_context=_setup)


@torch.library.custom_op("neobert::segmented_max_logits", mutates_args=())
def segmented_max_logits(qk: torch.Tensor, cu_seqlens: torch.Tensor, scale: float) -> torch.Tensor:
    """[T, 2, N, D], [S+1] -> [N] fp32: each head's largest ``scale * q.k`` over pairs of a segment."""
    layout = padded_layout(cu_seqlens, torch.float32)
    padded = qk.new_zeros((layout.size, *qk.shape[1:])).index_copy_(0, layout.slot, qk)
    largest = torch.full((qk.shape[2],), float("-inf"), dtype=torch.float32, device=qk.device)
    for group in layout.groups:
        for (q, k), mask, _, _ in _blocks(padded, group, qk.shape[2]):
            logits = (q @ k.transpose(-1, -2)).float() * scale
            if mask is not None:
                logits = logits + mask + mask.transpose(-1, -2)  # padded keys, padded queries
            largest = torch.maximum(largest, logits.amax((0, 2, 3)))
    return largest


@segmented_max_logits.register_fake
def _(qk, cu_seqlens, scale):
    return qk.new_empty((qk.shape[2],), dtype=torch.float32)
