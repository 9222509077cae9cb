"""Experiment trackers of a run (`runtime.report_to`), through accelerate's: what history and throughput hold, live.

    <scratch>/tensorboard/   event files (`tensorboard --logdir runs` shows all runs)
    <scratch>/dvclive/       DVCLive's own directory: no experiment is saved and no dvc.yaml written
    <scratch>/wandb/         wandb's local files; trackio keeps its own below the home directory

Rank 0 alone has them. A tracker that cannot start is an error before the first step; one that fails later is left out
with a warning and the training goes on, for what it records is in history.jsonl anyway. They see floats, after a step,
and every step seeds its own random state, so they cannot change a result. A resumed run goes on in the same tracker
run, a new start opens a new one. Cost: a call every `runtime.logging_steps`, where the loop waits for the device
already.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from neobert.config.runtime import RuntimeConfig
from neobert.errors import PipelineError
from neobert.io import read_json, write_json
from neobert.training.resume import RUN

log = logging.getLogger(__name__)
STATE = "trackers.json"


class Trackers:
    """The open trackers of one run; `close` ends them, whatever ended the run."""

    def __init__(self, scratch: Path, stage: str, runtime: RuntimeConfig, start: int) -> None:
        """Open them.

        Args:
            start: steps done already; above 0 the run's earlier tracker run is continued.

        Raises:
            PipelineError: a tracker cannot start.
        """
        self._open: dict[str, GeneralTracker] = {}
        if not runtime.report_to:
            return
        name, params = describe(scratch, stage)
        run = run_id(scratch, name, resumed=start > 0)
        for kind in dict.fromkeys(runtime.report_to):
            try:
                first, options = arguments(kind, scratch, runtime.project, name, run, start)
                tracker = LOGGER_TYPE_TO_CLASS[kind](first, **options)
                tracker.start()
                self._open[kind] = tracker
                if start == 0:
                    tracker.store_init_configuration(flat(params))
            except Exception as error:
                self.close()
                raise PipelineError(
                    f"runtime.report_to: {kind} cannot start ({type(error).__name__}: {error}); set it up, or take it "
                    "out of the list (which changes no result)"
                ) from error
        log.info("%s is tracked by %s as %s", stage, ", ".join(self._open), run)

    def log(self, prefix: str, step: int, figures: dict[str, Any]) -> None:
        """Send the numbers among `figures`, nested ones too, as `prefix/name`."""
        numbers = {
            f"{prefix}/{key}": value
            for key, value in flat(figures, "/").items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._each(lambda tracker: tracker.log(numbers, step=step))

    def close(self) -> None:
        """End them."""
        self._each(lambda tracker: tracker.finish())
        self._open.clear()

    def _each(self, call: Callable[[GeneralTracker], None]) -> None:
        for kind, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._open[kind]
                log.warning(
                    "runtime.report_to: %s failed and is left out from here on; the training goes on (%s: %s)",
                    *(kind, type(error).__name__, error),
                )


def arguments(kind: str, scratch: Path, project: str, name: str, run: str, start: int) -> tuple[str, dict[str, Any]]:
    """(first argument, options) of accelerate's tracker class: what it calls the run, and where it writes."""
    if kind == "tensorboard":
        # Rows after the checkpoint that the run goes on from will come again: hide the earlier ones.
        return "tensorboard", {"logging_dir": str(scratch), "purge_step": start + 1 if start else 0}
    if kind == "wandb":
        return project, {"id": run, "name": name, "resume": "allow", "dir": str(scratch)}
    if kind == "trackio":
        return project, {"name": run, "resume": "allow"}
    return name, {"dir": str(scratch / "dvclive"), "resume": start > 0, "save_dvc_exp": False, "dvcyaml": None}


def describe(scratch: Path, stage: str) -> tuple[str, dict[str, Any]]:
    """(stage and fingerprint, the stage's params) of the run in `scratch`.

    The embedding warm-up works in a directory inside that of its stage's run.
    """
    for directory in (scratch, scratch.parent):
        if (directory / RUN).is_file():
            described = read_json(directory / RUN)
            return f"{stage}-{described['fingerprint']}", described["parts"]["params"]
    return stage, {}


def run_id(scratch: Path, name: str, resumed: bool) -> str:
    """The tracker run's id: that of the run so far where it is resumed, else its name and the time."""
    path = scratch / STATE
    if not resumed or not path.is_file():
        write_json(path, {"run": f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"})
    return read_json(path)["run"]


def flat(values: dict[str, Any], separator: str = ".") -> dict[str, Any]:
    """Nested mappings as one, by joined keys; what is neither number, text nor truth value becomes JSON."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {f"{key}{separator}{inner}": v for inner, v in flat(value, separator).items()}
        else:
            found[key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return found
