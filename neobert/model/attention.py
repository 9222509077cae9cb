"""Bidirectional attention over a flat stream: a token sees the tokens of its own segment and no others.

Legend: T tokens, N heads, D channels a head, S segments. ``qkv`` is stored fused as ``[q | k | v]``, each [N * D], so
that a native export splits it and changes nothing. Backends: a varlen flash kernel (``neobert.model.varlen``, no
padding, one call) or segments padded to their group's longest for PyTorch's SDPA (``neobert.model.segments``). All
take one softmax scale. Cost: 4 x N x D x sum(length^2) multiply-adds forward.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from neobert.config.model import ModelConfig
from neobert.model.rope import apply_rope
from neobert.model.segments import Gather, PaddedLayout, Scatter, padded_layout
from neobert.model.segments_op import segmented_attention
from neobert.model.varlen import resolve_backend, varlen_attention


class Segments(NamedTuple):
    """Where segments lie, prepared once a forward and shared by all layers."""

    cu_seqlens: torch.Tensor
    max_seqlen: int
    layout: PaddedLayout | None
    """Only for sdpa outside torch.compile."""
    backend: str


def prepare_segments(cu_seqlens: torch.Tensor, max_seqlen: int, attn_backend: str, dtype: torch.dtype) -> Segments:
    """Choose the kernel for this device and lay out padding where the kernel needs it.

    Raises:
        PipelineError: ``flash_attn_varlen`` was asked for and no varlen kernel works here.
    """
    backend = resolve_backend(attn_backend, cu_seqlens.device, dtype)
    layout = None
    if backend == "sdpa" and not torch.compiler.is_compiling():
        layout = padded_layout(cu_seqlens, dtype)
    return Segments(cu_seqlens, max_seqlen, layout, backend)


def attend(qkv_T3ND: torch.Tensor, segments: Segments, scale: float) -> torch.Tensor:
    """[T, 3, N, D] -> [T, N, D] by the backend that ``segments`` names."""
    if segments.backend != "sdpa":
        return varlen_attention(qkv_T3ND, segments.cu_seqlens, segments.max_seqlen, scale, segments.backend)
    if segments.layout is None:
        return segmented_attention(qkv_T3ND, segments.cu_seqlens, scale)
    return padded_attention(qkv_T3ND, segments.layout, scale)


def padded_attention(qkv_T3ND: torch.Tensor, layout: PaddedLayout, scale: float) -> torch.Tensor:
    """SDPA over each group of the layout: one scatter in, one call a group, one gather out."""
    heads, channels = qkv_T3ND.shape[2:]
    padded = Scatter.apply(qkv_T3ND, layout.slot, layout.size)
    outputs = []
    for group in layout.groups:
        rows = padded[group.start : group.start + group.rows * group.length]
        q, k, v = rows.view(group.rows, group.length, 3, heads, channels).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, scale=scale)
        outputs.append(out.transpose(1, 2).reshape(-1, heads, channels))
    return Gather.apply(torch.cat(outputs) if len(outputs) > 1 else outputs[0], layout.slot)


class Attention(nn.Module):
    """Fused projection, rotary positions, attention, output projection: [T, H] -> [T, H]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor] | None, segments: Segments
    ) -> torch.Tensor:
        """``angles`` are RoPE's (cos, sin), each [T, D/2], or None where positions were added to the embeddings."""
        qkv = self.qkv(x).view(-1, 3, self.num_heads, self.head_dim)
        if angles is not None:
            qkv = torch.cat((apply_rope(qkv[:, :2], *angles), qkv[:, 2:]), dim=1)
        return self.out(attend(qkv, segments, self.head_dim**-0.5).flatten(1))
