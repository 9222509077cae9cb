"""`model_checkpoints/<step>/`: a model directory for each checkpoint, ready for export and inference.

It is made from the committed checkpoint by the saving thread on rank 0, so it costs training nothing and needs no
gathering, however the weights were sharded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from neobert.errors import PipelineError
from neobert.training.checkpoint import SafeReader, load_tensors

SaveModel = Callable[[Path, dict[str, Tensor]], None]
MODEL_CHECKPOINTS = "model_checkpoints"


def full_state(objective: nn.Module) -> dict[str, Tensor]:
    """A copy of the objective's whole state on the CPU; all ranks call it, sharded tensors are gathered."""
    state = {}
    for name, value in objective.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        state[name] = whole.detach().to("cpu", copy=True)
    return state


def read_model_state(checkpoint: Path) -> dict[str, Tensor]:
    """The objective's state in a checkpoint, whole, on the CPU; tied parameters appear once.

    Raises:
        PipelineError: the checkpoint's metadata cannot be read or is refused.
    """
    stored = SafeReader(checkpoint).entries()
    state = {key: torch.empty(v.size, dtype=v.properties.dtype) for key, v in stored.items()}
    load_tensors(checkpoint, state)
    return {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}


def model_writer(scratch: Path, keep: int, save_model: SaveModel | None) -> Callable[[Path], None] | None:
    """What the checkpointer calls with each committed checkpoint; None where the stage writes no model.

    Removes what a process that died while it wrote has left: each rank asks for this before any of them saves.
    """
    if save_model is None:
        return None
    directory = scratch / MODEL_CHECKPOINTS
    for left in directory.glob(".saving-*"):
        shutil.rmtree(left, ignore_errors=True)

    def write(checkpoint: Path) -> None:
        temporary, final = directory / f".saving-{checkpoint.name}", directory / checkpoint.name
        with _named_errors(final, checkpoint):
            try:
                temporary.mkdir(parents=True)
                save_model(temporary, read_model_state(checkpoint))
                shutil.rmtree(final, ignore_errors=True)
                os.rename(temporary, final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            steps = sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())
            for old in steps[:-keep]:
                shutil.rmtree(directory / str(old))

    return write


@contextlib.contextmanager
def _named_errors(final: Path, checkpoint: Path) -> Iterator[None]:
    """A failed write inside is one of the model directory `final`, whose temporary name would say nothing."""
    try:
        yield
    except (OSError, SafetensorError, PipelineError) as error:
        cause = error.__cause__ if isinstance(error, PipelineError) else error
        if not isinstance(cause, OSError | SafetensorError):
            raise
        raise PipelineError(
            f"{final}: the model directory could not be written ({getattr(cause, 'strerror', None) or cause}); "
            f"{checkpoint} is whole. Free space or make {final.parent} writable, then run the same command again "
            "(with runtime.resume_from_checkpoint: auto where it is false, which starts anew)"
        ) from error
