"""Section ``packing`` (and ``longer_context.packing``): how documents fill rows of fixed length."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from neobert.config.schema import Bounds


@dataclass(frozen=True)
class LengthShare:
    """A share of the packed tokens that comes from documents of at least so many tokens."""

    min_tokens: Annotated[int, "Documents of at least this many tokens, CLS and SEP included.", Bounds(ge=0)]
    share: Annotated[float, "Share of the packed tokens drawn from them.", Bounds(gt=0, le=1)]


@dataclass(frozen=True)
class PackingConfig:
    max_length: Annotated[int, "Tokens a row, CLS and SEP of every segment included.", Bounds(ge=8, le=1 << 20)] = 256
    length_mixture: Annotated[
        list[LengthShare],
        "Shares by document length, e.g. the paper's 20% all, 40% of 1024 and more, 40% of 2048 and more; empty: all.",
    ] = field(default_factory=list)

    def problems(self) -> Iterator[tuple[str, str]]:
        total = sum(part.share for part in self.length_mixture)
        if self.length_mixture and abs(total - 1) > 1e-6:
            yield "length_mixture", f"has shares that sum to {total:g}; they must sum to 1"
