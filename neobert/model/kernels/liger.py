"""Liger's Triton kernels as custom operators, so that a compiled graph stays whole around them.

Liger's own autograd functions launch kernels from Python and overwrite their inputs, which breaks graphs; here each
forward and backward is one opaque operator, and the SwiGLU backward works on copies. Source: Hsu et al. 2024,
arXiv:2410.10989, package liger-kernel. Needs a GPU. Shapes as in the Triton modules beside.
"""

import torch
from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward
from liger_kernel.ops.rms_norm import rms_norm_backward, rms_norm_forward
from liger_kernel.ops.rope import rope_backward, rope_forward
from liger_kernel.ops.swiglu import swiglu_backward, swiglu_forward
from liger_kernel.ops.utils import calculate_settings

LLAMA_CASTING = 0


@torch.library.custom_op("neobert::liger_rms_norm", mutates_args=())
def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    normed, _, rstd, *_ = rms_norm_forward(x.contiguous(), weight, eps, 0.0, LLAMA_CASTING, None)
    return normed, rstd


@_rms_norm.register_fake
def _(x, weight, eps):
    return torch.empty_like(x), x.new_empty(x.shape[0], dtype=torch.float32)


@torch.library.custom_op("neobert::liger_rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    block, warps = calculate_settings(x.shape[-1])
    return rms_norm_backward(grad.contiguous(), x, weight, rstd, 0.0, LLAMA_CASTING, block, warps, False, None)


@_rms_norm_backward.register_fake
def _(grad, x, weight, rstd):
    return torch.empty_like(x), torch.empty_like(weight)


def _rms_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0].contiguous(), inputs[1], output[1])


_rms_norm.register_autograd(
    lambda ctx, grad, _: (*_rms_norm_backward(grad, *ctx.saved_tensors), None), setup_context=_rms_setup
)


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + delta, its RMSNorm in ``dtype``); Liger's norm alone, the sum is PyTorch's."""
    total = x if delta is None else x + delta
    return total, _rms_norm(total, weight, eps)[0].to(dtype)


@torch.library.custom_op("neobert::liger_swiglu", mutates_args=())
def swiglu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``silu(a) * b``."""
    return swiglu_forward(a.contiguous(), b.contiguous())[2]


@swiglu.register_fake
def _(a, b):
    return torch.empty_like(a)


@torch.library.custom_op("neobert::liger_swiglu_backward", mutates_args=())
def _swiglu_backward(grad: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return swiglu_backward(a.clone(), b.clone(), grad.contiguous())


@_swiglu_backward.register_fake
def _(grad, a, b):
    return torch.empty_like(a), torch.empty_like(b)


swiglu.register_autograd(
    lambda ctx, grad: _swiglu_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@torch.library.custom_op("neobert::liger_rotate_qkv", mutates_args=())
def _rotate(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, backward: bool) -> torch.Tensor:
    out = qkv.clone(memory_format=torch.contiguous_format)
    # Liger's layout is [1, N, T, D] over [1, T, N, D] memory, and angles as wide as a head.
    q, k = (out[:, i].transpose(0, 1)[None] for i in (0, 1))
    wide_cos, wide_sin = torch.cat((cos, cos), -1)[None], torch.cat((sin, sin), -1)[None]
    turned = (rope_backward if backward else rope_forward)(q, k, wide_cos, wide_sin)
    for i in (0, 1):
        out[:, i] = turned[i][0].transpose(0, 1)
    return out


@_rotate.register_fake
def _(qkv, cos, sin, backward):
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _rotate_setup(ctx, inputs, output):
    _, cos, sin, ctx.backward_pass = inputs
    ctx.save_for_backward(cos, sin)


_rotate.register_autograd(
    lambda ctx, grad: (_rotate(grad, *ctx.saved_tensors, not ctx.backward_pass), None, None, None),
    setup_context=_rotate_setup,
)


def rotate_qkv(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE on [T, 3, N, D] by the angles [T, D/2]."""
    return _rotate(qkv, cos, sin, False)


@torch.library.custom_op("neobert::liger_linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    loss, _, _, _, grad_hidden, grad_weight, _ = fused_linear_cross_entropy_forward(
        hidden.contiguous(),
        weight.contiguous(),
        labels,
        reduction="sum",
        accum_dtype=torch.float32,
        compute_gradients=True,
        weight_requires_grad=True,
    )
    return loss.float(), grad_hidden, grad_weight


@_linear_cross_entropy.register_fake
def _(hidden, weight, labels):
    return hidden.new_empty((), dtype=torch.float32), torch.empty_like(hidden), torch.empty_like(weight)


def _cross_entropy_backward(ctx, grad, *_):
    grad_hidden, grad_weight = ctx.saved_tensors
    return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad.to(grad_weight.dtype), None


_linear_cross_entropy.register_autograd(
    _cross_entropy_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*output[1:])
)


def linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of cross-entropies (0-d fp32) of ``hidden @ weight.T``, [M, H] and [V, H]; labels [M], -100 ignored.

    Logits are made a chunk at a time, and gradients in the forward.
    """
    return _linear_cross_entropy(hidden, weight, labels)[0]
