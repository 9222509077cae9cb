"""`torchao.*`: low-precision pretraining by TorchAO (float8, MX formats, FP4 quantization-aware training)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from neobert.config.low_precision import LinearLayersConfig

EMULATED = ("mxfp8_emulated", "mxfp4_emulated", "mxfp4_qat")
"""Recipes whose products are computed in higher precision on rounded values, so on any device and in any type."""
SMALL_KN = ("float8_tensorwise", "float8_rowwise")
"""Recipes that TorchAO has size limits for."""


@dataclass(frozen=True)
class TorchaoConfig(LinearLayersConfig):
    """One recipe and its options; docs/training.md says which device and package each needs."""

    recipe: Annotated[
        Literal[
            "float8_tensorwise",
            "float8_rowwise",
            "float8_rowwise_with_gw_hp",
            "mxfp8_emulated",
            "mxfp8_cublas",
            "mxfp8_cublas_rceil",
            "mxfp4_cutlass",
            "mxfp4_emulated",
            "nvfp4_qat",
            "mxfp4_qat",
        ],
        "Number format and scaling.",
    ] = "float8_rowwise"
    auto_filter_small_kn: Annotated[
        bool, "Keep layers that TorchAO's table of sizes says are slower in float8 (float8_rowwise: all of width 768)."
    ] = False
    enable_fsdp_float8_all_gather: Annotated[
        bool, "Gather weights over ranks in float8 (float8_tensorwise under fsdp2 or hsdp)."
    ] = False
    precompute_float8_dynamic_scale_for_fsdp: Annotated[
        bool, "Compute all weights' scales in one all-reduce a step instead of one each."
    ] = False

    def problems(self) -> Iterable[tuple[str, str]]:
        """Options that the recipe would ignore."""
        yield from super().problems()
        if self.auto_filter_small_kn and self.recipe not in SMALL_KN:
            yield "auto_filter_small_kn", f"is for {' and '.join(SMALL_KN)}, not {self.recipe}; set it to false"
        if self.enable_fsdp_float8_all_gather and self.recipe != "float8_tensorwise":
            yield (
                "enable_fsdp_float8_all_gather",
                f"needs one scale a weight, which float8_tensorwise has and {self.recipe} has not; set it to false",
            )
        if self.precompute_float8_dynamic_scale_for_fsdp and not self.enable_fsdp_float8_all_gather:
            yield (
                "precompute_float8_dynamic_scale_for_fsdp",
                "makes the scales that enable_fsdp_float8_all_gather uses; set that to true or this to false",
            )
