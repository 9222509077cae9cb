"""`transformer_engine.*`: low-precision pretraining by NVIDIA's Transformer Engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from neobert.config.low_precision import LinearLayersConfig

NVFP4_ONLY = ("disable_2d_quantization", "disable_rht", "disable_stochastic_rounding")


@dataclass(frozen=True)
class TransformerEngineConfig(LinearLayersConfig):
    """One recipe and its options; docs/training.md says which device and package each needs."""

    recipe: Annotated[
        Literal["fp8_delayed", "fp8_current", "mxfp8", "nvfp4"],
        "Number format and scaling; fp8_delayed cannot be compiled.",
    ] = "fp8_current"
    fp8_format: Annotated[
        Literal["E4M3", "HYBRID"] | None,
        "Format of activations and weights; HYBRID takes E5M2 for gradients. Null is the recipe's own.",
    ] = None
    disable_2d_quantization: Annotated[bool, "nvfp4: scale weights in rows of 16, not squares of 16 x 16."] = False
    disable_rht: Annotated[bool, "nvfp4: no random Hadamard transform."] = False
    disable_stochastic_rounding: Annotated[bool, "nvfp4: round gradients to nearest."] = False

    def problems(self) -> Iterable[tuple[str, str]]:
        """Options that the recipe would ignore."""
        yield from super().problems()
        if self.recipe == "nvfp4":
            if self.fp8_format is not None:
                yield "fp8_format", "is not for nvfp4, whose values are E2M1; set it to null"
            return
        for name in NVFP4_ONLY:
            if getattr(self, name):
                yield name, f"is for nvfp4, not {self.recipe}; set it to false"
