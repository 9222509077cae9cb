"""nGPT blocks: every hidden vector and every weight vector lives on the unit sphere.

Loshchilov et al. 2024, arXiv:2410.01131. A block moves the hidden state towards its branch's normalised output by a
learned step per channel (``alpha``), queries and keys are normalised and scaled (``s_qk``), the feed-forward's two
inputs are scaled (``s_u``, ``s_v``), logits are scaled (``s_z``, in ``neobert.model.heads``). There are no norms and
no warm-up is needed; weight decay should be 0. After each optimizer step ``normalize_weights`` puts the weights back
on the sphere. Cost: one read and write of the weights a step.
"""

import torch
import torch.nn.functional as F
from torch import nn

from neobert.config.model import ModelConfig
from neobert.model.attention import attend
from neobert.model.mlp import swiglu
from neobert.model.plan import ForwardPlan
from neobert.model.rope import rotate_qkv


class Scale(nn.Module):
    """A learned vector that starts at ``initial`` while its parameter starts at ``stored``.

    The ratio sets the vector's effective learning rate relative to the weights' (section 2.5 of the paper).
    """

    def __init__(self, size: int, initial: float, stored: float) -> None:
        super().__init__()
        self.ratio = initial / stored
        self.weight = nn.Parameter(torch.full((size,), stored))

    def forward(self) -> torch.Tensor:
        """[size], the vector in use."""
        return self.weight * self.ratio


def unit(x: torch.Tensor) -> torch.Tensor:
    """``x`` over its Euclidean length along the last dimension, in fp32 inside; a zero vector stays zero."""
    return F.normalize(x.float(), dim=-1).to(x.dtype)


class NormalizedBlock(nn.Module):
    """Attention and SwiGLU with normalised interpolation instead of residual sums and norms, [T, H] -> [T, H]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.mlp_size
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        base = hidden**-0.5
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.w1 = nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(hidden, inner, bias=False)
        self.w3 = nn.Linear(inner, hidden, bias=False)
        self.s_qk = Scale(hidden, 1.0, base)
        self.alpha_attention = Scale(hidden, 0.05, base)
        self.alpha_mlp = Scale(hidden, 0.05, base)
        self.s_u = Scale(inner, 1.0, 1.0)
        self.s_v = Scale(inner, 1.0, 1.0)
        self.gate_gain = hidden**0.5
        self.dropout = nn.Dropout(config.dropout)

    def _attention(self, x: torch.Tensor, plan: ForwardPlan) -> torch.Tensor:
        qkv = self.qkv(x).view(-1, 3, self.num_heads, self.head_dim)
        if plan.angles is not None:
            qkv = rotate_qkv(qkv, *plan.angles, plan.kernels)
        qk = unit(qkv[:, :2]) * self.s_qk().view(self.num_heads, self.head_dim).to(qkv.dtype)
        qkv = torch.cat((qk, qkv[:, 2:]), dim=1)
        # Unit queries and keys have products of variance 1/D, so the softmax multiplies where others divide.
        return self.out(attend(qkv, plan, self.head_dim**0.5).flatten(1))

    def _mlp(self, x: torch.Tensor, kernels: str) -> torch.Tensor:
        gate, up = self.w1(x), self.w2(x)
        gate = gate * (self.s_v() * self.gate_gain).to(gate.dtype)
        return self.w3(swiglu(gate, up * self.s_u().to(up.dtype), kernels))

    def forward(
        self, x: torch.Tensor, branch: torch.Tensor | None, plan: ForwardPlan
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[T, H] -> the new stream; nothing is ever left to be added to it, so ``branch`` is None on both sides."""
        target = unit(self.dropout(self._attention(x, plan)))
        x = unit(x + self.alpha_attention().abs() * (target - x))
        target = unit(self.dropout(self._mlp(x, plan.kernels)))
        return unit(x + self.alpha_mlp().abs() * (target - x)), None


@torch.no_grad()
def normalize_weights(model: nn.Module) -> None:
    """Put every weight vector of an nGPT model on the unit sphere along the hidden dimension, in place.

    The hidden dimension is a matrix's input where it reads the stream (qkv, w1, w2, embeddings, decoder) and its
    output where it writes it (out, w3). Call once after the initialisation and once after each optimizer step.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2:
            continue
        dim = 0 if name.rsplit(".", 2)[-2] in ("out", "w3") else 1
        parameter.copy_(F.normalize(parameter.float(), dim=dim))
