"""What `torchao.*`, `transformer_engine.*` and `quartet2.*` have in common: which linear layers, and when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated


@dataclass(frozen=True)
class LinearLayersConfig:
    """Keys of every low-precision section."""

    enable: Annotated[bool, "Train the linear layers of both pretraining phases in this low precision."] = False
    filter_fqns: Annotated[
        list[str], "Keep a linear layer in `trainer.mixed_precision` whose name contains one of these."
    ] = field(default_factory=lambda: ["decoder"])
    skip_first_last_linear: Annotated[bool, "Also keep the model's first and last linear layer."] = True
    require_compile: Annotated[bool, "Refuse to run without trainer.torch_compile, which it is slow without."] = True

    def problems(self) -> Iterable[tuple[str, str]]:
        """The decoder is a product inside the loss, which no replaced layer would compute."""
        if not any(entry and entry in "decoder" for entry in self.filter_fqns):
            yield "filter_fqns", "must name the decoder, whose product is part of the loss; add 'decoder'"
