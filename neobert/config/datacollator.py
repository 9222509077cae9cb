"""`datacollator.*`: how tokens are masked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from neobert.config.schema import Bounds


@dataclass(frozen=True)
class DataCollatorConfig:
    """Masked language modelling's corruption."""

    mlm_probability: Annotated[float, "Part of each row's maskable tokens that is predicted.", Bounds(gt=0, lt=1)] = 0.2
    mask_all: Annotated[bool, "Replace every predicted token by the mask (the paper's recipe), not 80/10/10."] = False
    pack_sequences: Annotated[
        bool, "A sample is a packed row; false makes it one document, a batch so many documents (ablation)."
    ] = True
    join_segments: Annotated[
        bool, "Drop the boundaries inside a packed row, so that its documents attend to each other (ablation)."
    ] = False

    def problems(self) -> Iterable[tuple[str, str]]:
        """Single documents have nothing to join."""
        if self.join_segments and not self.pack_sequences:
            yield "join_segments", "needs pack_sequences: true"
