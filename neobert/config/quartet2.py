"""`quartet2.*`: low-precision pretraining in NVFP4 by Quartet-II."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from neobert.config.low_precision import LinearLayersConfig
from neobert.config.schema import Bounds

KERNEL_MULTIPLE = 128


@dataclass(frozen=True)
class Quartet2Config(LinearLayersConfig):
    """One recipe and its options; docs/training.md says which device and package it needs."""

    recipe: Annotated[Literal["quartet_ii"], "Number format and scaling."] = "quartet_ii"
    required_dim_multiple: Annotated[
        int, "Keep layers whose width, in or out, this does not divide.", Bounds(ge=KERNEL_MULTIPLE)
    ] = KERNEL_MULTIPLE
    four_over_six: Annotated[bool, "Choose each block's scale as the better of two (4/6)."] = True

    def problems(self) -> Iterable[tuple[str, str]]:
        """What the kernels ask for."""
        yield from super().problems()
        if self.required_dim_multiple % KERNEL_MULTIPLE:
            yield "required_dim_multiple", f"must be a multiple of {KERNEL_MULTIPLE}, the size of the kernels' blocks"
