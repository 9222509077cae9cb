"""Linear layers in microscaling formats by TorchAO: MXFP8 and MXFP4 training, FP4 quantization-aware training.

Blocks of 32 values along the inner dimension of a product share a power-of-two scale (16 and an e4m3 scale for NVFP4).
Training rounds the operands of all three products; quantization-aware training rounds the forward's and computes the
backward with those rounded values in the products' own type. Scales round down (`floor`, OCP's rule) or up (`rceil`).
Emulated recipes compute the products of rounded values in higher precision: the same numbers on any device, slowly.
Source: torchao.prototype.moe_training.mxfp8_linear and torchao.prototype.qat; Rouhani et al. 2023, arXiv:2310.10537.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from neobert.training.low_precision.layers import adopt, replace

Product = Callable[[Tensor, Tensor], Tensor]


class LowPrecisionLinear(nn.Linear):
    """A linear layer whose product, with its gradient, is a function of x [T, K] and the weight [N, K]."""

    def __init__(self, linear: nn.Linear, product: Product) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        adopt(self, linear)
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        """[T, K] -> [T, N], in autocast's type where it is on."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        y = self.product(x.to(dtype), self.weight.to(dtype))
        return y if self.bias is None else y + self.bias.to(dtype)


def convert(objective: nn.Module, recipe: str, layers: dict[str, nn.Linear]) -> None:
    """Replace `layers` of `objective` in place."""
    product = _quantization_aware(recipe) if recipe.endswith("_qat") else _training(recipe)
    for name, linear in layers.items():
        replace(objective, name, LowPrecisionLinear(linear, product))


def _training(recipe: str) -> Product:
    """All three products in the format."""
    from torchao.prototype.moe_training.mxfp8_linear import mx_mm
    from torchao.prototype.mx_formats.config import (
        MXFP8Dim0CastKernelChoice,
        MXFP8Dim1CastKernelChoice,
        ScaleCalculationMode,
    )
    from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

    emulated = recipe.endswith("_emulated")
    elements = torch.float8_e4m3fn if recipe.startswith("mxfp8") else torch.float4_e2m1fn_x2
    settings = (
        *(elements, elements, elements),  # of input, weight and gradient
        32,
        KernelPreference.EMULATED if emulated else KernelPreference.AUTO,
        # Triton's casts come with the package; the CUDA ones need an extension that wheels carry for one Python only.
        MXFP8Dim0CastKernelChoice.TORCH if emulated else MXFP8Dim0CastKernelChoice.TRITON,
        MXFP8Dim1CastKernelChoice.TORCH if emulated else MXFP8Dim1CastKernelChoice.TRITON,
        ScaleCalculationMode.RCEIL if recipe.endswith("_rceil") else ScaleCalculationMode.FLOOR,
        False,  # the weight's gradient in the format too
    )
    return lambda x, weight: mx_mm.apply(x, weight, *settings)


def _quantization_aware(recipe: str) -> Product:
    """The forward in the format, the backward from its rounded operands."""
    if recipe == "mxfp4_qat":
        from torchao.prototype.qat.mx import MXFakeQuantizeConfig, _MXQuantizedForwardFakeQuantizedBackward

        mx = MXFakeQuantizeConfig()
        return lambda x, weight: _MXQuantizedForwardFakeQuantizedBackward.apply(x, weight, None, mx, mx)
    from torchao.prototype.qat.nvfp4 import NVFP4FakeQuantizeConfig, _NVFP4QuantizedForwardFakeQuantizedBackward

    nvfp4 = NVFP4FakeQuantizeConfig()
    return lambda x, weight: _NVFP4QuantizedForwardFakeQuantizedBackward.apply(x, weight, None, nvfp4, nvfp4)
