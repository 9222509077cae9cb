"""`optimizer.*`: the update rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from neobert.config.schema import Bounds


@dataclass(frozen=True)
class MuonSettings:
    """Muon's keys with their defaults filled in; sentences are `OptimizerConfig`'s."""

    momentum: float = 0.95
    nesterov: bool = True
    orthogonalization: str = "newton_schulz"
    ns_steps: int = 5
    adjust_lr_fn: str = "match_rms_adamw"
    qk_clip_threshold: float = 100.0


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, Adam, Muon or MuonClip. Norms, biases and embeddings are never decayed."""

    name: Annotated[
        Literal["adamw", "adam", "muon", "muonclip"],
        "Update rule; muon and muonclip update the encoder's weight matrices and leave the rest to AdamW.",
    ] = "adamw"
    lr: Annotated[float, "Peak learning rate; the scheduler multiplies it.", Bounds(gt=0)] = 6e-4
    betas: Annotated[list[float], "Decay of the running mean and of the running square."] = field(
        default_factory=lambda: [0.9, 0.95]
    )
    eps: Annotated[float, "Added to the root of the running square.", Bounds(gt=0)] = 1e-8
    weight_decay: Annotated[
        float, "Decay of weight matrices: decoupled, or with adam added to the gradient.", Bounds(ge=0)
    ] = 0.1
    adamw_lr: Annotated[
        float | None, "Muon: peak learning rate of what it leaves to AdamW; null takes lr.", Bounds(gt=0)
    ] = None
    momentum: Annotated[
        float | None, "Muon: decay of the running mean of gradients; null takes 0.95.", Bounds(ge=0, lt=1)
    ] = None
    nesterov: Annotated[bool | None, "Muon: Nesterov momentum; null takes true."] = None
    orthogonalization: Annotated[
        Literal["newton_schulz", "polar_express"] | None,
        "Muon: polynomials that orthogonalise the update; null takes newton_schulz.",
    ] = None
    ns_steps: Annotated[int | None, "Muon: steps of the orthogonalisation; null takes 5.", Bounds(ge=1, le=100)] = None
    adjust_lr_fn: Annotated[
        Literal["original", "match_rms_adamw"] | None,
        "Muon: rate by a matrix's shape, sqrt(max(1, rows / columns)) or 0.2 sqrt(max(rows, columns)), whose updates "
        "are as large as AdamW's; null takes match_rms_adamw.",
    ] = None
    qk_clip_threshold: Annotated[
        float | None, "MuonClip: largest attention logit of a head that is left alone; null takes 100.", Bounds(gt=0)
    ] = None

    @property
    def muon(self) -> MuonSettings:
        """Muon's keys, those that are null by default filled in."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(MuonSettings)}
        return MuonSettings(**{name: value for name, value in given.items() if value is not None})

    def problems(self) -> Iterable[tuple[str, str]]:
        """Rules on the pair of betas, and keys that the chosen rule would ignore."""
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", "must be two numbers, each at least 0 and less than 1"
        keys = ["adamw_lr", *(f.name for f in dataclasses.fields(MuonSettings))]
        for key in keys:
            meant = ("muonclip",) if key == "qk_clip_threshold" else ("muon", "muonclip")
            if getattr(self, key) is not None and self.name not in meant:
                yield key, f"has no meaning for optimizer.name {self.name}; remove it"
