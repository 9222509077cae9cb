"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) or LayerNorm, as ``model.rms_norm`` says.

Both reduce in fp32 and return the input's dtype. Cost: one read and one write of the stream.
"""

import torch
import torch.nn.functional as F
from torch import nn

from neobert.config.model import ModelConfig


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> [..., size]."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def make_norm(config: ModelConfig) -> nn.Module:
    """The norm of a block's branch, as configured."""
    if config.rms_norm:
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, config.norm_eps)
