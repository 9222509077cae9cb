"""SwiGLU's gate ``silu(a) * b`` in Triton, forward and backward in one pass each.

Inductor's own backward of this expression was the largest element-wise cost of a step (17 of 230 ms on one H200).
Cost: forward reads 2 and writes 1 tensor of [T, I], backward reads 3 and writes 2. Arithmetic in fp32.
``swiglu_halves`` reads a and b as the halves of one product's rows and writes their gradients so: one product then
gives both, and one the gradient of each operand. Reference: ``F.silu(a) * b`` and its autograd.
"""

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

BLOCK = 4096
WARPS = 8


@triton.jit
def _swiglu(a, b):
    return a * tl.sigmoid(a) * b


@triton.jit
def _swiglu_gradients(grad, a, b):
    gate = tl.sigmoid(a)
    silu = a * gate
    return grad * b * (gate + silu * (1.0 - gate)), grad * silu


@triton.jit
def _swiglu_forward_kernel(a_ptr, b_ptr, out_ptr, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    keep = at < size
    a = tl.load(a_ptr + at, mask=keep, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=keep, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, _swiglu(a, b), mask=keep)


@triton.jit
def _swiglu_backward_kernel(grad_ptr, a_ptr, b_ptr, grad_a_ptr, grad_b_ptr, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    keep = at < size
    grad = tl.load(grad_ptr + at, mask=keep, other=0.0).to(tl.float32)
    a = tl.load(a_ptr + at, mask=keep, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + at, mask=keep, other=0.0).to(tl.float32)
    grad_a, grad_b = _swiglu_gradients(grad, a, b)
    tl.store(grad_a_ptr + at, grad_a, mask=keep)
    tl.store(grad_b_ptr + at, grad_b, mask=keep)


@triton.jit
def _swiglu_halves_forward_kernel(both_ptr, out_ptr, inner, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)
    keep = column < inner
    a = tl.load(both_ptr + row * 2 * inner + column, mask=keep, other=0.0).to(tl.float32)
    b = tl.load(both_ptr + row * 2 * inner + inner + column, mask=keep, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * inner + column, _swiglu(a, b), mask=keep)


@triton.jit
def _swiglu_halves_backward_kernel(grad_ptr, both_ptr, grad_both_ptr, inner, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)
    keep = column < inner
    grad = tl.load(grad_ptr + row * inner + column, mask=keep, other=0.0).to(tl.float32)
    a = tl.load(both_ptr + row * 2 * inner + column, mask=keep, other=0.0).to(tl.float32)
    b = tl.load(both_ptr + row * 2 * inner + inner + column, mask=keep, other=0.0).to(tl.float32)
    grad_a, grad_b = _swiglu_gradients(grad, a, b)
    tl.store(grad_both_ptr + row * 2 * inner + column, grad_a, mask=keep)
    tl.store(grad_both_ptr + row * 2 * inner + inner + column, grad_b, mask=keep)


@triton_op("neobert::swiglu", mutates_args=())
def swiglu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``silu(a) * b`` of two tensors of one shape and type."""
    a, b = a.contiguous(), b.contiguous()
    out = torch.empty_like(a)
    grid = (triton.cdiv(a.numel(), BLOCK),)
    wrap_triton(_swiglu_forward_kernel)[grid](a, b, out, a.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return out


@triton_op("neobert::swiglu_backward", mutates_args=())
def swiglu_backward(grad: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of a and b."""
    grad, a, b = grad.contiguous(), a.contiguous(), b.contiguous()
    grad_a, grad_b = torch.empty_like(a), torch.empty_like(b)
    grid = (triton.cdiv(a.numel(), BLOCK),)
    wrap_triton(_swiglu_backward_kernel)[grid](grad, a, b, grad_a, grad_b, a.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return grad_a, grad_b


@triton_op("neobert::swiglu_halves", mutates_args=())
def swiglu_halves(both: torch.Tensor) -> torch.Tensor:
    """``silu(a) * b`` [T, I] of the rows' halves a, b of ``both`` [T, 2I]."""
    both = both.contiguous()
    rows, inner = both.shape[0], both.shape[1] // 2
    out = both.new_empty((rows, inner))
    size = triton.next_power_of_2(inner)
    wrap_triton(_swiglu_halves_forward_kernel)[(rows,)](both, out, inner, SIZE=size, num_warps=WARPS)
    return out


@triton_op("neobert::swiglu_halves_backward", mutates_args=())
def swiglu_halves_backward(grad: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    """Gradient [T, 2I] of ``both``."""
    grad, both = grad.contiguous(), both.contiguous()
    rows, inner = grad.shape
    result = torch.empty_like(both)
    size = triton.next_power_of_2(inner)
    wrap_triton(_swiglu_halves_backward_kernel)[(rows,)](grad, both, result, inner, SIZE=size, num_warps=WARPS)
    return result


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return swiglu_backward(grad, *ctx.saved_tensors)


def _halves_backward(ctx, grad):
    return swiglu_halves_backward(grad, *ctx.saved_tensors)


swiglu.register_autograd(_backward, setup_context=_setup)
swiglu_halves.register_autograd(_halves_backward, setup_context=_setup)
