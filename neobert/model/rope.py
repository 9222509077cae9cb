"""Rotary position embedding in the rotate-half pairing.

Channel i of a head is paired with channel i + D/2 and turned by ``position * theta^(-2i/D)`` (Su et al. 2021,
arXiv:2104.09864, in the pairing of GPT-NeoX and of transformers' classes, so weights export unchanged). Angles are
computed once a forward in fp32 and shared by all layers: T x D/2 sines and cosines.
"""

import torch
from torch import nn


def rope_frequencies(head_dim: int, theta: float) -> torch.Tensor:
    """Radians per position of each channel pair, [head_dim / 2] fp32, computed on the CPU as transformers does."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    return 1.0 / (theta**exponents)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn ``x`` [T, ..., D] by per-token ``cos``, ``sin`` [T, D/2]; computed in fp32, returned as ``x.dtype``."""
    shape = (x.shape[0],) + (1,) * (x.dim() - 2) + (cos.shape[-1],)
    cos, sin = cos.view(shape), sin.view(shape)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def rotate_qkv(qkv_T3ND: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, kernels: str) -> torch.Tensor:
    """Turn queries and keys of a fused qkv [T, 3, N, D]; values pass through."""
    if kernels == "triton":
        from neobert.model.kernels import triton_rope

        return triton_rope.rotate_qkv(qkv_T3ND, cos, sin, 1)
    if kernels == "liger":
        from neobert.model.kernels import liger

        return liger.rotate_qkv(qkv_T3ND, cos, sin)
    return torch.cat((apply_rope(qkv_T3ND[:, :2], cos, sin), qkv_T3ND[:, 2:]), dim=1)


class RotaryEmbedding(nn.Module):
    """Positions to angles: ``forward(position_ids[T]) -> cos[T, D/2], sin[T, D/2]`` in fp32."""

    inv_freq: torch.Tensor

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        self.register_buffer("inv_freq", rope_frequencies(head_dim, theta), persistent=False)

    def _apply(self, fn, recurse=True):
        # A cast of the model must not round the frequencies, and a model built on the meta device gets real ones.
        super()._apply(fn, recurse)
        device = self.inv_freq.device
        if device.type != "meta":
            self.inv_freq = rope_frequencies(self.head_dim, self.theta).to(device)
        return self

    def forward(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        angles = position_ids[:, None].float() * self.inv_freq
        return angles.cos(), angles.sin()
