"""RoPE on a fused qkv in Triton: queries and keys are turned, values are copied, in one pass.

A program handles one token: its heads share one row of angles. Cost: one read and one write of [T, 3, N, D], or of two
thirds of it in place (``rotate_in_place``, which the fused attention operator uses on memory it owns). The backward is
the same kernel with the opposite angle. Reference: ``neobert.model.rope.apply_rope``.
"""

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton


@triton.jit
def _rotate_kernel(
    source_ptr,
    target_ptr,
    cos_ptr,
    sin_ptr,
    source_stride,
    target_stride,
    sign,
    heads,
    turned_heads,
    half,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    sign = tl.cast(sign, tl.float32)  # TorchInductor passes Python floats as fp64
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    channel = tl.arange(0, HALF)[None, :]
    keep = (head < heads) & (channel < half)
    cos = tl.load(cos_ptr + token * half + channel, mask=channel < half, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * half + channel, mask=channel < half, other=0.0).to(tl.float32) * sign
    turned = head < turned_heads
    cos = tl.where(turned, cos, 1.0)
    sin = tl.where(turned, sin, 0.0)
    at = head * (2 * half) + channel
    a = tl.load(source_ptr + token * source_stride + at, mask=keep, other=0.0).to(tl.float32)
    b = tl.load(source_ptr + token * source_stride + at + half, mask=keep, other=0.0).to(tl.float32)
    tl.store(target_ptr + token * target_stride + at, a * cos - b * sin, mask=keep)
    tl.store(target_ptr + token * target_stride + at + half, b * cos + a * sin, mask=keep)


def _launch(wrap, source, target, cos, sin, sign, heads, turned_heads):
    half = cos.shape[-1]
    wrap(_rotate_kernel)[(source.shape[0],)](
        source,
        target,
        cos,
        sin,
        source.stride(0),
        target.stride(0),
        float(sign),
        heads,
        turned_heads,
        half,
        HEADS=triton.next_power_of_2(heads),
        HALF=triton.next_power_of_2(half),
        num_warps=4,
    )


def rotate_queries_keys(
    source: torch.Tensor, target: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int
) -> None:
    """Turn [T, 2, N, D] of ``source`` by ``sign`` times the angles [T, D/2] into ``target``, which may be ``source``.

    Both may be the first two thirds of a fused [T, 3, N, D]; only the stride of T is free. For use inside operators
    that own ``target``.
    """
    heads = 2 * source.shape[2]
    _launch(lambda kernel: kernel, source, target, cos, sin, sign, heads, heads)


@triton_op("neobert::rotate_qkv", mutates_args=())
def rotate_qkv(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int) -> torch.Tensor:
    """[T, 3, N, D] with queries and keys turned by ``sign`` (1 or -1) times the angles [T, D/2] fp32."""
    qkv = qkv.contiguous()
    out = torch.empty_like(qkv)
    _launch(wrap_triton, qkv, out, cos, sin, sign, 3 * qkv.shape[2], 2 * qkv.shape[2])
    return out


def _setup(ctx, inputs, output):
    _, cos, sin, ctx.sign = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx, grad):
    return rotate_qkv(grad, *ctx.saved_tensors, -ctx.sign), None, None, None


rotate_qkv.register_autograd(_backward, setup_context=_setup)
