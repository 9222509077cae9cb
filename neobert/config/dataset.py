"""`dataset.*`: which packed rows are trained on and which are held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from neobert.config.schema import Bounds


@dataclass(frozen=True)
class DatasetConfig:
    """Splits of the packed data."""

    eval_split: Annotated[
        str | None, "Split evaluated during training; null takes the first of validation, eval, test, dev that exists."
    ] = None
    eval_samples: Annotated[
        int | None,
        "Rows evaluated; null is all. Without any such split, so many first rows of train are held out instead.",
        Bounds(ge=1),
    ] = None
