"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) or LayerNorm, each together with the residual sum before it.

A norm takes the stream and the branch that is still to be added, and returns both the new stream and its norm: one
read and one write of each where a fused kernel runs. Reductions in fp32.
"""

import torch
import torch.nn.functional as F
from torch import nn

from neobert.config.model import ModelConfig
from neobert.model.plan import ForwardPlan


def add_rms_norm(
    x: torch.Tensor, branch: torch.Tensor | None, weight: torch.Tensor, eps: float, plan: ForwardPlan
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + branch [T, H] in x's type, its RMSNorm in the plan's type); ``branch`` may be None."""
    if plan.kernels == "triton":
        from neobert.model.kernels import triton_rmsnorm

        return triton_rmsnorm.add_rms_norm(x, branch, weight, eps, plan.dtype)
    if plan.kernels == "liger":
        from neobert.model.kernels import liger

        return liger.add_rms_norm(x, branch, weight, eps, plan.dtype)
    total = x if branch is None else x + branch
    return total, F.rms_norm(total, (total.shape[-1],), weight.to(total.dtype), eps).to(plan.dtype)


class RMSNorm(nn.Module):
    """``total = x + branch; (total, total / sqrt(mean(total^2) + eps) * weight)``."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(
        self, x: torch.Tensor, branch: torch.Tensor | None, plan: ForwardPlan
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, H], [T, H] or None -> the sum and its norm."""
        return add_rms_norm(x, branch, self.weight, self.eps, plan)


class LayerNorm(nn.LayerNorm):
    """The residual sum and its LayerNorm, with weight and bias."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, branch: torch.Tensor | None, plan: ForwardPlan
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, H], [T, H] or None -> the sum and its norm."""
        total = x if branch is None else x + branch
        return total, super().forward(total).to(plan.dtype)


def make_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    """The norm of a block's branch, as configured."""
    return (RMSNorm if config.rms_norm else LayerNorm)(config.hidden_size, config.norm_eps)
