"""Which checkpoint a run goes on from.

auto    the newest valid one of this very run (same fingerprint), or of one that differs only in a max_steps that its
        schedule allows to change; damaged ones are passed over, loudly
latest  the newest of any run of this stage, whatever changed since, loudly
<step>, <path>  that one, or an error; once this run has gone on from there, the newest of what it has done since
        (the directory of a run, or its checkpoints folder, means the newest valid one there)
false   none: start anew
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neobert.config.scheduler import SchedulerConfig
from neobert.errors import PipelineError
from neobert.io import MANIFEST, atomic_path, read_json
from neobert.training.checkpoint import SafeReader, compare, load_tensors, read_state, steps_in
from neobert.training.model_checkpoint import MODEL_CHECKPOINTS
from neobert.training.schedule import extends
from neobert.training.step import TrainStep

log = logging.getLogger(__name__)
RUN = "run.json"
CHECKPOINTS = "checkpoints"
HISTORY = "history.jsonl"
BEST, BEST_STATE, BEST_FIGURES = "best", "best.safetensors", "best.json"
"""The best model so far of a run that keeps it, below its scratch; the figures (step, score, ...) are written last."""
COMPLETE = "COMPLETE"
"""In the scratch of a run that has finished."""
WINDOW = "window."
MAX_STEPS = {f"params.{section}trainer.max_steps" for section in ("", "longer_context.", "contrastive.")}
"""The loop's own length in a run's description; a warm-up's, which ends alike, decides the weights that are trained."""


@dataclass(frozen=True)
class Start:
    """Where a run begins: optimizer steps done, and samples they took (another batch size may have made them).

    `asked` is the step or path that the run's course began from, as it was set; checkpoints keep it as `resumed_from`,
    so that the same setting does not undo the course that it began.
    """

    step: int = 0
    samples: int = 0
    asked: str | None = None


def differences(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Dotted names under which two runs' descriptions (params, inputs, code) differ."""
    found = []
    for key in sorted(mine.keys() | other.keys()):
        a, b = mine.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{key}.{name}" for name in differences(a, b)]
        elif a != b:
            found.append(key)
    return found


def siblings(scratch: Path, stage: str) -> list[Path]:
    """Other runs of this stage beside `scratch`, newest first."""
    runs = [p for p in scratch.parent.glob(f"{stage}-*") if p != scratch and steps_in(p / CHECKPOINTS)]
    return sorted(runs, key=lambda p: (p / CHECKPOINTS / str(steps_in(p / CHECKPOINTS)[-1])).stat().st_mtime)[::-1]


def _described(run: Path) -> dict[str, Any]:
    return read_json(run / RUN)["parts"] if (run / RUN).is_file() else {}


def _verified(candidates: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Those whose every byte verifies, with their host counters; nothing in a checkpoint is read before that."""
    for path in candidates:
        try:
            counters = read_state(path)
        except PipelineError as error:
            log.warning("DAMAGED CHECKPOINT passed over, going back to the one before it: %s", error)
        else:
            yield path, counters


def _newest_first(run: Path) -> list[Path]:
    return [run / CHECKPOINTS / str(step) for step in reversed(steps_in(run / CHECKPOINTS))]


def _left_alone(run: Path, differing: list[str]) -> str:
    """What is said of a run that this one does not go on from; a finished one has nothing to continue."""
    step = steps_in(run / CHECKPOINTS)[-1]
    what = f"other {', '.join(differing[:6])}" if differing else "the same params, inputs and code"
    if (run / COMPLETE).exists() or run.suffix == ".complete":
        return f"{run}: a finished run of {step} steps and {what}; it is left alone"
    return (
        f"{run}: an interrupted run at step {step} of {what}; it is left alone "
        "(runtime.resume_from_checkpoint: latest, or its path, continues it)"
    )


def _extensible(
    scratch: Path, stage: str, scheduler: SchedulerConfig, max_steps: int
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Checkpoints of runs that differ from this one in max_steps alone, where every rate so far would be the same."""
    mine = _described(scratch)
    for run in siblings(scratch, stage):
        differing = differences(mine, _described(run)) if mine else ["run.json"]
        if len(differing) != 1 or differing[0] not in MAX_STEPS:
            log.info(_left_alone(run, differing))
            continue
        beyond = [path for path in _newest_first(run) if int(path.name) >= max_steps]
        for path in beyond:
            log.info("%s: not continued, it is not before trainer.max_steps (%d)", path, max_steps)
        for path, counters in _verified(path for path in _newest_first(run) if path not in beyond):
            if extends(scheduler, counters["step"], counters["max_steps"], max_steps):
                yield path, counters
            else:
                log.info("%s: not continued, scheduler %s depends on max_steps", path, scheduler.name)


def _fits(path: Path, state: dict[str, Tensor]) -> bool:
    """Whether a verified checkpoint has this model's and optimizer's tensors; says why not."""
    try:
        stored = {key: entry for key, entry in SafeReader(path).entries().items() if not key.startswith(WINDOW)}
        compare(path, stored, {key: value for key, value in state.items() if not key.startswith(WINDOW)})
    except PipelineError as error:
        log.warning("not continued: %s", error)
        return False
    return True


def choose(
    setting: str | int | bool,
    scratch: Path,
    stage: str,
    scheduler: SchedulerConfig,
    max_steps: int,
    state: dict[str, Tensor],
) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to resume from and its host counters, verified; None to start anew.

    Args:
        state: the tensors it must fit, where "latest" has a choice.

    Raises:
        PipelineError: the one asked for by step or path is not there or damaged.
    """
    if setting is False:
        for directory in (CHECKPOINTS, MODEL_CHECKPOINTS):
            shutil.rmtree(scratch / directory, ignore_errors=True)
        return None
    if setting == "auto":
        mine = next(_verified(_newest_first(scratch)), None)
        return mine or next(_extensible(scratch, stage, scheduler, max_steps), None)
    if setting == "latest":
        others = [path for run in siblings(scratch, stage) for path in _newest_first(run)]
        # A run that has already come this far has nothing to go on with; its model would only be handed through.
        others = [path for path in others if int(path.name) < max_steps]
        verified = _verified([*_newest_first(scratch), *others])
        chosen = next((found for found in verified if _fits(found[0], state)), None)
        if chosen is not None and chosen[0].parent.parent != scratch:
            run = chosen[0].parent.parent
            changed = differences(_described(scratch), _described(run))
            log.warning("RESUMING ANOTHER RUN's checkpoint %s; changed since: %s", chosen[0], ", ".join(changed))
        return chosen
    return _named(str(setting), scratch)


def _named(setting: str, scratch: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that a step or path names, or the newest of this run that has gone on from there."""
    newest = next(_verified(_newest_first(scratch)), None)
    if newest is not None and newest[1].get("resumed_from") == setting:
        log.warning(
            "runtime.resume_from_checkpoint: %s: this run has gone on from there to step %d, and goes on from that; "
            "delete its checkpoints beyond that in %s to begin at %s once more",
            *(setting, newest[1]["step"], scratch / CHECKPOINTS, setting),
        )
        return newest
    path = scratch / CHECKPOINTS / setting if setting.isdigit() else Path(setting)
    if not path.is_dir():
        have = ", ".join(map(str, steps_in(scratch / CHECKPOINTS))) or "none"
        raise PipelineError(
            f"runtime.resume_from_checkpoint: {setting!r}: {path} does not exist; this run has checkpoints: {have}"
        )
    if (path / MANIFEST).is_file():
        return path, read_state(path)
    run = path if (path / CHECKPOINTS).is_dir() else path.parent
    inside = next(_verified(_newest_first(run)), None) if path in (run, run / CHECKPOINTS) else None
    if inside is None:
        raise PipelineError(
            f"runtime.resume_from_checkpoint: {setting!r}: {path} is no checkpoint and holds no whole checkpoint; name "
            "one (<run>/checkpoints/<step>) or the directory of a run that has saved one"
        )
    return inside


def discard_after(scratch: Path, step: int) -> bool:
    """Remove checkpoints and model directories beyond `step`: damaged ones, or of a course that the run now leaves.

    Returns:
        Whether there were such checkpoints.
    """
    directory = scratch / CHECKPOINTS
    beyond = [s for s in steps_in(directory) if s > step]
    for later in beyond:
        log.warning("removing %s: damaged, or of a course that the run leaves", directory / str(later))
        (directory / str(later) / MANIFEST).unlink()  # first, so that a removal cut short looks like one
        shutil.rmtree(directory / str(later))
    for model in (scratch / MODEL_CHECKPOINTS).glob("*"):
        # The newest are kept, by step: one from beyond would displace the new course's.
        if model.name.isdigit() and int(model.name) > step:
            shutil.rmtree(model)
    return bool(beyond)


def _forget_best(scratch: Path) -> None:
    (scratch / BEST / BEST_FIGURES).unlink(missing_ok=True)  # first, so that a removal cut short looks like one
    shutil.rmtree(scratch / BEST, ignore_errors=True)


def _best_until(run: Path, step: int) -> bool:
    """Whether `run` still has its best model of the steps up to `step`; says so where a later one has replaced it."""
    figures = run / BEST / BEST_FIGURES
    if not figures.is_file():
        return False
    kept = read_json(figures)["step"]
    if kept > step:
        log.warning(
            "%s: is the best model of step %d, beyond step %d from which the run goes on; that of the steps until then "
            "was replaced by it, so that only evaluations from here on count",
            *(figures.parent, kept, step),
        )
    return bool(kept <= step)


def _go_back(scratch: Path, step: int, told: bool) -> None:
    """Drop what lies beyond `step`; of the best model only where the run was `told` to leave its course.

    After damage the same steps follow, and a later best is simply met once more.
    """
    if discard_after(scratch, step) and told and not _best_until(scratch, step):
        _forget_best(scratch)


def _leave_for(run: Path, scratch: Path, step: int) -> None:
    """Put another run's history and best model up to `step` in place of this one's, and drop this one's checkpoints.

    All of them: those before `step` are of another course too, and falling back to one, under the history and the best
    model of this course, would mix the two.
    """
    best, figures = run / BEST, scratch / BEST / BEST_FIGURES
    if _best_until(run, step):
        with atomic_path(scratch / BEST / BEST_STATE) as path:  # large: a full disk is met before anything is lost
            shutil.copyfile(best / BEST_STATE, path)
            figures.unlink(missing_ok=True)  # they are of the state that is replaced now
        with atomic_path(figures) as path:
            shutil.copyfile(best / BEST_FIGURES, path)
    else:
        _forget_best(scratch)
    discard_after(scratch, -1)
    if (run / HISTORY).is_file():
        shutil.copyfile(run / HISTORY, scratch / HISTORY)  # rows so far belong to the run that goes on


def restore(
    step: TrainStep, scratch: Path, stage: str, setting: str | int | bool, scheduler: SchedulerConfig, max_steps: int
) -> Start:
    """Load the chosen checkpoint into `step` in place, and say where that is; a fresh start when there is none.

    Raises:
        PipelineError: as `choose`, or the checkpoint does not fit the model, or lies beyond max_steps; the run's own
            checkpoints and history are then as they were.
    """
    workers, state = step.workers, step.state()
    chosen = choose(setting, scratch, stage, scheduler, max_steps, state) if workers.is_main else None
    if workers.is_main and chosen is None:
        discard_after(scratch, 0)
        _forget_best(scratch)
    chosen = workers.from_main(chosen)
    if chosen is None:
        return Start()
    path, counters = chosen
    if counters["step"] > max_steps:
        raise PipelineError(f"trainer.max_steps ({max_steps}) is less than {path}'s step ({counters['step']})")
    for key in SafeReader(path).entries().keys() - state.keys():
        if key.startswith(WINDOW):  # the objective's own metrics are known only after a first step
            state[key] = torch.zeros_like(step.window["loss"])
            # One that is told not to count hits never adds to another run's: read, and left.
            if getattr(step.objective, "accuracy", True):
                step.window[key.removeprefix(WINDOW)] = state[key]
    load_tensors(path, state, workers)
    run = path.resolve().parent.parent
    own = run == scratch.resolve()  # runs/ is relative, and may be a link to another disk
    workers.barrier()  # no rank refused it or still reads: what the run leaves for it may go
    if workers.is_main and own:
        _go_back(scratch, counters["step"], told=setting not in ("auto", "latest"))
    elif workers.is_main:
        _leave_for(run, scratch, counters["step"])
    workers.barrier()  # files of the course to come are there before any rank looks for them
    log.info("%s: resumed from %s", stage, path)
    kept = counters.get("resumed_from") if own else None
    asked = kept if setting in ("auto", "latest") else str(setting)
    return Start(counters["step"], counters["samples_seen"], asked)
