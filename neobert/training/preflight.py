"""What must hold before the first step, all of it said at once: writable places, and room for the checkpoints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from neobert.config.optimizer import OptimizerConfig
from neobert.config.runtime import RuntimeConfig
from neobert.errors import PipelineError
from neobert.training.model_checkpoint import MODEL_CHECKPOINTS
from neobert.training.optimizer import state_elements
from neobert.training.resume import CHECKPOINTS


def existing_parent(path: Path) -> Path:
    """The nearest thing at or above `path` that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def bytes_wanted(module: nn.Module, optimizer: OptimizerConfig, runtime: RuntimeConfig) -> int:
    """Room for the checkpoints and model directories that are kept, and for the one being written."""
    weights = sum(p.numel() for p in module.parameters())
    # Weights are in fp32, and once more in the model directory beside a checkpoint.
    return (runtime.save_total_limit + 1) * (2 * weights + state_elements(module, optimizer)) * 4


def bytes_held(scratch: Path) -> int:
    """What an interrupted run's checkpoints and model directories take already; newer ones will take their place."""
    files = (path for name in (CHECKPOINTS, MODEL_CHECKPOINTS) for path in (scratch / name).rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file())


def problems(
    writable: list[Path], scratch: Path, module: nn.Module, optimizer: OptimizerConfig, runtime: RuntimeConfig
) -> Iterator[str]:
    """What would stop the run later."""
    for path in writable:
        parent = existing_parent(path)
        if not parent.is_dir():
            yield f"{path}: cannot be made, {parent} is not a directory; move that file away"
        elif not os.access(parent, os.W_OK | os.X_OK):
            yield f"{path}: cannot be written, {parent} is read-only for this user; change its permissions"
    wanted, free = bytes_wanted(module, optimizer, runtime), shutil.disk_usage(existing_parent(scratch)).free
    held = bytes_held(scratch)
    # Old ones are removed after a new one is committed, so there must always be room for that one.
    wanted = max(wanted - held, wanted // (runtime.save_total_limit + 1))
    if free < wanted:
        yield (
            f"{scratch}: has {free / 2**30:.2f} GiB free where checkpoints need {wanted / 2**30:.2f} GiB "
            f"(runtime.save_total_limit of them and one being written, less the {held / 2**30:.2f} GiB kept already); "
            "free space, lower the limit, or point NEOBERT_RUNS_DIR to a larger disk"
        )


def check(
    writable: list[Path], scratch: Path, module: nn.Module, optimizer: OptimizerConfig, runtime: RuntimeConfig
) -> None:
    """Raise PipelineError with everything that `problems` finds."""
    found = list(problems([*writable, scratch], scratch, module, optimizer, runtime))
    if found:
        raise PipelineError("\n  ".join(found))
