"""`runtime.*`: keys that cannot change a result. In no stage's params and in no fingerprint."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from neobert.config.schema import Bounds


@dataclass(frozen=True)
class DistributedConfig:
    """`runtime.distributed`: how one run is spread over devices."""

    strategy: Annotated[
        Literal["ddp", "fsdp2", "hsdp"], "Replicate the model (ddp), shard it (fsdp2), or shard in groups (hsdp)."
    ] = "ddp"
    num_processes: Annotated[
        int | None, "Processes a stage starts on this host; null is one a local GPU, and one on a CPU.", Bounds(ge=1)
    ] = None
    ddp_bucket_cap_mb: Annotated[
        int | None,
        "MiB of gradients that ddp reduces at once; null is 256. A compiled step is cut there.",
        Bounds(ge=1),
    ] = None
    shard_size: Annotated[int | None, "Ranks in one group of hsdp; null is the ranks of one host.", Bounds(ge=2)] = None

    def problems(self) -> Iterable[tuple[str, str]]:
        """A key that the chosen strategy would ignore."""
        if self.ddp_bucket_cap_mb is not None and self.strategy != "ddp":
            yield "ddp_bucket_cap_mb", f"belongs to strategy ddp, not {self.strategy}; remove it"
        if self.shard_size is not None and self.strategy != "hsdp":
            yield "shard_size", f"belongs to strategy hsdp, not {self.strategy}; remove it"


@dataclass(frozen=True)
class RuntimeConfig:
    """Saving, logging, resuming, timing and launching."""

    save_steps: Annotated[
        int | None, "Save a checkpoint every this many steps; null saves at the end.", Bounds(ge=1)
    ] = 500
    save_total_limit: Annotated[int, "Checkpoints kept; older ones are removed.", Bounds(ge=1)] = 2
    logging_steps: Annotated[int, "Log and record a history row every this many steps.", Bounds(ge=1)] = 10
    resume_from_checkpoint: Annotated[
        str | int | bool,
        "auto: this very run; latest: the stage's newest compatible one; a path or step; false: start anew.",
    ] = "auto"
    num_workers: Annotated[
        int | None, "Threads that make batches; 0 makes them in line; null follows from the cores.", Bounds(ge=0)
    ] = None
    prefetch_factor: Annotated[int | None, "Steps whose batches each thread makes ahead; null is 2.", Bounds(ge=1)] = (
        None
    )
    pin_memory: Annotated[
        bool | None, "Copy batches to a GPU from pinned memory, without waiting; null does where there is a GPU."
    ] = None
    persistent_workers: Annotated[
        bool | None, "Keep threads, and the batches they hold, through evaluations; null does where there are threads."
    ] = None
    report_to: Annotated[
        list[Literal["tensorboard", "wandb", "trackio", "dvclive"]],
        "Experiment trackers that also get the history and speed of each training; empty is none.",
    ] = field(default_factory=list)
    project: Annotated[str, "The project's name at wandb and trackio."] = "neobert"
    timing: Annotated[bool, "Measure where the time of each step goes, and log and record it."] = False
    distributed: Annotated[DistributedConfig, "How the run is spread over devices."] = field(
        default_factory=DistributedConfig
    )

    def problems(self) -> Iterable[tuple[str, str]]:
        """`true` would not say which checkpoint to take; a tracker must be installed."""
        if self.resume_from_checkpoint is True:
            yield "resume_from_checkpoint", "must be auto, latest, a path, a step or false"
        for name in self.report_to:
            if importlib.util.find_spec(name) is None:
                yield "report_to", f"needs the package {name}, which is not installed: pip install {name}"
