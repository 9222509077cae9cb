"""Quartet-II linear layers: all three products in NVFP4, with unbiased gradients.

The forward rounds to the nearest (each block of 16 with the better of two scales, 4/6); the backward rotates blocks
of 128 by a random Hadamard transform and rounds so that gradients stay unbiased.
Source: quartet2.linear, https://github.com/IST-DASLab/Quartet-II.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neobert.config.quartet2 import Quartet2Config
from neobert.errors import PipelineError
from neobert.training.low_precision.layers import adopt, replace


def convert(objective: nn.Module, config: Quartet2Config, layers: dict[str, nn.Linear], device: torch.device) -> None:
    """Replace `layers` of `objective` in place; the transform lies on `device`.

    Raises:
        PipelineError: this version keeps weights in bf16, which an optimizer step would round away.
    """
    from quartet2.linear import Quartet_II_linear

    class Linear(Quartet_II_linear):
        """On a flat stream; the kernels ask for batches of sequences."""

        def forward(self, x: Tensor) -> Tensor:
            """[T, K] -> [T, N]."""
            return super().forward(x[None])[0]

    for name, linear in layers.items():
        try:
            layer = Linear(
                linear.in_features,
                linear.out_features,
                bias=False,
                four_over_six=config.four_over_six,
                device=device,
                dtype=linear.weight.dtype,
            )
        except AssertionError as error:
            raise PipelineError(
                "quartet2.recipe: this version of quartet2 takes bf16 weights only, and training keeps them in fp32; "
                "install a newer one"
            ) from error
        layer._non_persistent_buffers_set |= set(layer._buffers)  # constants of the kernels, not state
        replace(objective, name, adopt(layer, linear))
