"""`optimizer.*`: the update rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from neobert.config.schema import Bounds


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. Norms, biases and embeddings are never decayed."""

    name: Annotated[Literal["adamw"], "Update rule."] = "adamw"
    lr: Annotated[float, "Peak learning rate; the scheduler multiplies it.", Bounds(gt=0)] = 6e-4
    betas: Annotated[list[float], "Decay of the running mean and of the running square."] = field(
        default_factory=lambda: [0.9, 0.95]
    )
    eps: Annotated[float, "Added to the root of the running square.", Bounds(gt=0)] = 1e-8
    weight_decay: Annotated[float, "Decoupled decay of weight matrices.", Bounds(ge=0)] = 0.1

    def problems(self) -> Iterable[tuple[str, str]]:
        """Rules on the pair of betas."""
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", "must be two numbers, each at least 0 and less than 1"
