"""The largest attention logit of each head within segments, in Triton: flash attention's first product alone.

A program takes a block of queries of one head and walks over the keys of the segments that they lie in, keeping a
running maximum a query. Segments are found on the device. Cost: 2 x D operations a pair of tokens of one segment, and
of few others at the segments' edges; no logit is written to memory. Arithmetic in fp32.
Reference: ``neobert.model.segments_op.segmented_max_logits``.
"""

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

BLOCK = 64
WARPS = 4


@triton.jit
def _max_logits_kernel(
    qk_ptr,
    first_ptr,
    last_ptr,
    out_ptr,
    scale,
    tokens,
    heads,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    scale = tl.cast(scale, tl.float32)  # TorchInductor passes Python floats as fp64
    head = tl.program_id(1)
    channel = tl.arange(0, PADDED_D)
    stride = 2 * heads * D
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = row < tokens
    first = tl.load(first_ptr + row, mask=real, other=tokens)
    last = tl.load(last_ptr + row, mask=real, other=0)
    query_at = row.to(tl.int64)[:, None] * stride + head * D + channel[None, :]
    q = tl.load(qk_ptr + query_at, mask=real[:, None] & (channel < D)[None, :], other=0.0)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    end = tl.max(last, axis=0)
    for start in range(tl.min(first, axis=0), end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        key_at = column.to(tl.int64)[None, :] * stride + (heads + head) * D + channel[:, None]
        k = tl.load(qk_ptr + key_at, mask=(column < end)[None, :] & (channel < D)[:, None], other=0.0)
        logits = tl.dot(q, k, input_precision="ieee") * scale
        own = (column[None, :] >= first[:, None]) & (column[None, :] < last[:, None])
        best = tl.maximum(best, tl.max(tl.where(own, logits, float("-inf")), axis=1))
    tl.store(out_ptr + tl.program_id(0) * heads + head, tl.max(best, axis=0))


@triton_op("neobert::triton_max_logits", mutates_args=())
def segmented_max_logits(qk: torch.Tensor, cu_seqlens: torch.Tensor, scale: float) -> torch.Tensor:
    """[T, 2, N, D], [S+1] int32 -> [N] fp32: max over pairs of a segment of ``scale * q.k``."""
    tokens, _, heads, channels = qk.shape
    # All of cu_seqlens, less 1: where boundaries are a slice, TorchInductor's GPU code reads from the whole's start.
    segment = torch.bucketize(torch.arange(tokens, dtype=torch.int32, device=qk.device), cu_seqlens, right=True) - 1
    blocks = triton.cdiv(tokens, BLOCK)
    out = torch.empty(blocks, heads, dtype=torch.float32, device=qk.device)
    wrap_triton(_max_logits_kernel)[(blocks, heads)](
        qk.contiguous(),
        cu_seqlens[segment],
        cu_seqlens[segment + 1],
        out,
        scale,
        tokens,
        heads,
        D=channels,
        PADDED_D=max(16, triton.next_power_of_2(channels)),
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return out.amax(0)
