"""Quartet-II linear layers: all three products in NVFP4, with unbiased gradients.

The forward rounds to the nearest (each block of 16 with the better of two scales, 4/6); the backward rotates blocks
of 128 by a random Hadamard transform and rounds so that gradients stay unbiased.
Source: quartet2.linear, https://github.com/IST-DASLab/Quartet-II.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neobert.config.quartet2 import Quartet2Config
from neobert.training.low_precision.layers import adopt, replace


class _InBf16:
    """A layer as its own forward sees it, but for the weight: the kernels take bf16, the optimizer keeps fp32."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer, self.weight = layer, layer.weight.to(torch.bfloat16)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


def convert(objective: nn.Module, config: Quartet2Config, layers: dict[str, nn.Linear], device: torch.device) -> None:
    """Replace `layers` of `objective` in place; the transform lies on `device`."""
    from quartet2.linear import Quartet_II_linear

    class Linear(Quartet_II_linear):
        """On a flat stream; the kernels ask for batches of sequences."""

        def forward(self, x: Tensor) -> Tensor:
            """[T, K] -> [T, N] in bf16."""
            return Quartet_II_linear.forward(_InBf16(self), x[None].to(torch.bfloat16))[0]

    for name, linear in layers.items():
        layer = Linear(
            linear.in_features,
            linear.out_features,
            bias=False,
            four_over_six=config.four_over_six,
            device=device,
            dtype=torch.bfloat16,
        )
        layer._non_persistent_buffers_set |= set(layer._buffers)  # constants of the kernels, not state
        replace(objective, name, adopt(layer, linear))
