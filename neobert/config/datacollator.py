"""`datacollator.*`: how tokens are masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from neobert.config.schema import Bounds


@dataclass(frozen=True)
class DataCollatorConfig:
    """Masked language modelling's corruption."""

    mlm_probability: Annotated[float, "Part of each row's maskable tokens that is predicted.", Bounds(gt=0, lt=1)] = 0.2
    mask_all: Annotated[bool, "Replace every predicted token by the mask (the paper's recipe), not 80/10/10."] = False
