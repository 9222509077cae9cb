"""`dataset.*`: which packed rows are trained on and which are held out."""

from __future__ import annotations

from collections.abc import Iterable
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
    sampling_probs: Annotated[
        list[float] | None,
        "Share of the samples drawn from each source (entry of corpus.files or corpus.hub, in that order); they sum to "
        "1. null reads every row once an epoch.",
    ] = None

    def problems(self) -> Iterable[tuple[str, str]]:
        """Shares are a distribution; how many there must be, the packed data says."""
        probs = self.sampling_probs
        if probs is not None and (not probs or min(probs) < 0 or abs(sum(probs) - 1) > 1e-6):
            yield "sampling_probs", "must be positive or 0 and sum to 1"
