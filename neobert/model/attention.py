"""Bidirectional attention over a flat stream: a token sees the tokens of its own segment and no others.

Legend: T tokens, N heads, D channels a head, S segments. ``qkv`` is stored fused as ``[q | k | v]``, each [N * D], so
that a native export splits it and changes nothing. Backends: a varlen flash kernel (``neobert.model.varlen``, no
padding, one call) or segments padded to their group's longest for PyTorch's SDPA (``neobert.model.segments``). All
take one softmax scale. Cost: 4 x N x D x sum(length^2) multiply-adds forward.
"""

import torch
import torch.nn.functional as F
from torch import nn

from neobert.config.model import ModelConfig
from neobert.model.max_logits import max_logits
from neobert.model.plan import ForwardPlan
from neobert.model.rope import rotate_qkv
from neobert.model.segments import Gather, PaddedLayout, Scatter
from neobert.model.segments_op import segmented_attention
from neobert.model.varlen import varlen_attention


def rotate_and_attend(qkv_T3ND: torch.Tensor, plan: ForwardPlan, scale: float) -> torch.Tensor:
    """Rotary positions where the plan has them, then attention: [T, 3, N, D] -> [T, N, D]."""
    if plan.angles is None:
        return attend(qkv_T3ND, plan, scale)
    if plan.attention == "fa4" and plan.kernels == "triton":
        from neobert.model.flash4 import flash4_attention

        return flash4_attention(qkv_T3ND, plan.cu_seqlens, plan.max_seqlen, scale, plan.angles)
    return attend(rotate_qkv(qkv_T3ND, *plan.angles, plan.kernels), plan, scale)


def attend(qkv_T3ND: torch.Tensor, plan: ForwardPlan, scale: float) -> torch.Tensor:
    """[T, 3, N, D] -> [T, N, D] by the backend that the plan names."""
    if plan.attention != "sdpa":
        return varlen_attention(qkv_T3ND, plan.cu_seqlens, plan.max_seqlen, scale, plan.attention)
    if plan.layout is None:
        return segmented_attention(qkv_T3ND, plan.cu_seqlens, scale)
    return padded_attention(qkv_T3ND, plan.layout, scale)


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
    """Fused projection, rotary positions, attention, output projection: [T, H] -> [T, H].

    Where ``max_logits`` ([N] fp32) is set, a forward pass in training raises it to each head's largest logit.
    """

    max_logits: torch.Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("max_logits", None, persistent=False)
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, plan: ForwardPlan) -> torch.Tensor:
        """See the class."""
        qkv = self.qkv(x).view(-1, 3, self.num_heads, self.head_dim)
        scale = self.head_dim**-0.5
        if self.max_logits is not None and self.training:
            self.max_logits.copy_(torch.maximum(self.max_logits, max_logits(qkv.detach(), plan, scale)))
        return self.out(rotate_and_attend(qkv, plan, scale).flatten(1))
