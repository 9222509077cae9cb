"""`scheduler.*`: the learning rate's course over `trainer.max_steps`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from neobert.config.schema import Bounds


@dataclass(frozen=True)
class SchedulerConfig:
    """Warmup, then one of five courses. Lengths are steps or percent of `trainer.max_steps`."""

    name: Annotated[
        Literal["cosine", "linear", "wsd", "constant", "inverse_sqrt"],
        "Course after the warmup; wsd is warmup, stable, decay.",
    ] = "cosine"
    warmup_steps: Annotated[int, "Steps of linear warmup from 0.", Bounds(ge=0)] = 0
    warmup_percent: Annotated[float | None, "Warmup as percent of the run, instead of steps.", Bounds(ge=0, le=100)] = (
        None
    )
    decay_steps: Annotated[
        int | None, "Steps of decay: wsd's last ones; cosine and linear reach their end after so many.", Bounds(ge=1)
    ] = None
    decay_percent: Annotated[float | None, "Decay as percent of the run, instead of steps.", Bounds(gt=0, le=100)] = (
        None
    )
    final_lr_ratio: Annotated[float, "Learning rate at the end of the decay, over the peak.", Bounds(ge=0, le=1)] = 0.1
    decay_shape: Annotated[Literal["linear", "1-sqrt"], "Course of wsd's decay."] = "linear"

    def problems(self) -> Iterable[tuple[str, str]]:
        """Keys that the chosen course would ignore, and lengths given twice or of more than the run."""
        if self.warmup_percent is not None and self.warmup_steps:
            yield "warmup_percent", f"and warmup_steps ({self.warmup_steps}) both set the warmup; keep one"
        if self.decay_percent is not None and self.decay_steps is not None:
            yield "decay_percent", f"and decay_steps ({self.decay_steps}) both set the decay; keep one"
        if self.name in ("constant", "inverse_sqrt"):
            for key in ("decay_steps", "decay_percent"):
                if getattr(self, key) is not None:
                    yield key, f"has no meaning for scheduler.name {self.name}; remove it"
        elif (self.warmup_percent or 0) + (self.decay_percent or 0) > 100:
            yield (
                "decay_percent",
                f"and warmup_percent ({self.warmup_percent}) are more than the run, so the decay would not end in it; "
                "lower one, together they may be at most 100",
            )
        if self.name != "wsd" and self.decay_shape != "linear":
            yield "decay_shape", f"has no meaning for scheduler.name {self.name}; make it linear"
        if self.name == "wsd" and self.decay_steps is None and self.decay_percent is None:
            yield "name", "wsd needs decay_steps or decay_percent"
