"""Residual sum and RMSNorm in one pass of Triton, forward and backward.

``total = x + delta`` and ``normed = total / sqrt(mean(total^2) + eps) * weight`` leave one kernel; the backward adds
both outputs' gradients and, where the branch has another type than the stream, writes its copy in the same pass. The
weight's gradient is summed by a fixed grid of programs into partial rows, so it is the same from run to run.

Cost a token, in tensors of width H: forward reads 2 and writes 2, backward reads 3 and writes 1 or 2. Reductions in
fp32. Reference: ``F.rms_norm`` and its autograd.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton


class Launch(NamedTuple):
    """How a kernel is cut: rows that a program takes at once, and its warps."""

    rows: int
    warps: int


# Among the fastest of 65,536 x 768 on an H200 (benchmarks/results/tuning-h200.json).
FORWARD = Launch(rows=2, warps=4)
BACKWARD_WIDE = Launch(rows=2, warps=1)
"""For a stream of fp32: 0.21 ms, where 4 rows of 4 warps took 0.29."""
BACKWARD_NARROW = Launch(rows=2, warps=4)
PROGRAMS_A_PROCESSOR = 8
"""Of the backward: enough to fill the device, few enough that their partial rows cost nothing."""


@triton.jit
def _rms_norm_forward_kernel(
    x_ptr,
    delta_ptr,
    weight_ptr,
    total_ptr,
    normed_ptr,
    rstd_ptr,
    rows,
    size,
    eps,
    HAS_DELTA: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    eps = tl.cast(eps, tl.float32)  # TorchInductor passes Python floats as fp64
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SIZE)
    keep = (row < rows)[:, None] & (column < size)[None, :]
    at = row[:, None] * size + column[None, :]
    value = tl.load(x_ptr + at, mask=keep, other=0.0).to(tl.float32)
    if HAS_DELTA:
        value += tl.load(delta_ptr + at, mask=keep, other=0.0).to(tl.float32)
        # The norm sees the sum as it is stored, which is what the backward reads.
        value = value.to(total_ptr.dtype.element_ty).to(tl.float32)
        tl.store(total_ptr + at, value, mask=keep)
    rstd = tl.rsqrt(tl.sum(value * value, axis=1) / size + eps)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)
    weight = tl.load(weight_ptr + column, mask=column < size, other=0.0).to(tl.float32)
    tl.store(normed_ptr + at, value * rstd[:, None] * weight[None, :], mask=keep)


@triton.jit
def _rms_norm_backward_kernel(
    grad_total_ptr,
    grad_normed_ptr,
    total_ptr,
    weight_ptr,
    rstd_ptr,
    grad_x_ptr,
    grad_delta_ptr,
    partial_ptr,
    rows,
    size,
    HAS_GRAD_TOTAL: tl.constexpr,
    HAS_GRAD_DELTA: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    column = tl.arange(0, SIZE)
    inside = column < size
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([SIZE], dtype=tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        keep = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * size + column[None, :]
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)[:, None]
        unit = tl.load(total_ptr + at, mask=keep, other=0.0).to(tl.float32) * rstd
        grad = tl.load(grad_normed_ptr + at, mask=keep, other=0.0).to(tl.float32)
        grad_weight += tl.sum(grad * unit, axis=0)
        grad = grad * weight[None, :]
        grad = (grad - unit * (tl.sum(grad * unit, axis=1) / size)[:, None]) * rstd
        if HAS_GRAD_TOTAL:
            grad += tl.load(grad_total_ptr + at, mask=keep, other=0.0).to(tl.float32)
        tl.store(grad_x_ptr + at, grad, mask=keep)
        if HAS_GRAD_DELTA:
            tl.store(grad_delta_ptr + at, grad, mask=keep)
    tl.store(partial_ptr + tl.program_id(0) * size + column, grad_weight, mask=inside)


def programs(device: torch.device) -> int:
    """Programs of the backward."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return PROGRAMS_A_PROCESSOR * processors


@triton_op("neobert::add_rms_norm", mutates_args=())
def add_rms_norm_op(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(total [T, H] as x, normed [T, H] as ``dtype``, rstd [T] fp32); without a ``delta`` total is empty."""
    x = x.contiguous()
    rows, size = x.shape
    has_delta = delta is not None
    total = torch.empty_like(x) if has_delta else x.new_empty(0)
    normed = torch.empty_like(x, dtype=dtype)
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    wrap_triton(_rms_norm_forward_kernel)[(triton.cdiv(rows, FORWARD.rows),)](
        x,
        delta.contiguous() if delta is not None else x,
        weight,
        total,
        normed,
        rstd,
        rows,
        size,
        eps,
        HAS_DELTA=has_delta,
        ROWS=FORWARD.rows,
        SIZE=triton.next_power_of_2(size),
        num_warps=FORWARD.warps,
    )
    return total, normed, rstd


@triton_op("neobert::add_rms_norm_backward", mutates_args=())
def add_rms_norm_backward(
    grad_total: torch.Tensor | None,
    grad_normed: torch.Tensor,
    total: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    delta_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, of delta (empty unless ``delta_dtype`` is given) and of weight."""
    rows, size = total.shape
    grad_normed = grad_normed.contiguous()
    grad_x = torch.empty_like(total)
    grad_delta = torch.empty_like(total, dtype=delta_dtype) if delta_dtype is not None else total.new_empty(0)
    launch = BACKWARD_WIDE if total.dtype == torch.float32 else BACKWARD_NARROW
    count = programs(total.device)
    partial = torch.empty((count, size), dtype=torch.float32, device=total.device)
    wrap_triton(_rms_norm_backward_kernel)[(count,)](
        grad_total.contiguous() if grad_total is not None else grad_normed,
        grad_normed,
        total,
        weight,
        rstd,
        grad_x,
        grad_delta,
        partial,
        rows,
        size,
        HAS_GRAD_TOTAL=grad_total is not None,
        HAS_GRAD_DELTA=delta_dtype is not None,
        ROWS=launch.rows,
        SIZE=triton.next_power_of_2(size),
        num_warps=launch.warps,
    )
    return grad_x, grad_delta, partial.sum(0).to(weight.dtype)


def _setup(ctx, inputs, output):
    x, delta, weight, _, _ = inputs
    total, _, rstd = output
    ctx.delta_dtype = None if delta is None else delta.dtype
    ctx.save_for_backward(x if delta is None else total, weight, rstd)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_total, grad_normed, _):
    total, weight, rstd = ctx.saved_tensors
    if grad_normed is None:
        grad_normed = torch.zeros_like(total)
    other = ctx.delta_dtype if ctx.delta_dtype != total.dtype else None
    grad_total = grad_total if ctx.delta_dtype is not None else None
    grad_x, grad_delta, grad_weight = add_rms_norm_backward(grad_total, grad_normed, total, weight, rstd, other)
    if ctx.delta_dtype is None:
        return grad_x, None, grad_weight, None, None
    return grad_x, grad_x if other is None else grad_delta, grad_weight, None, None


add_rms_norm_op.register_autograd(_backward, setup_context=_setup)


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + delta [T, H] in x's type, its RMSNorm [T, H] in ``dtype``); ``delta`` may be None."""
    total, normed, _ = add_rms_norm_op(x, delta, weight, eps, dtype)
    return (x if delta is None else total), normed
