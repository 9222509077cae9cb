"""A running training's directory, `runs/<stage>-<fingerprint>/`, outside of what DVC owns.

The fingerprint covers what decides the result: the stage's params in params.yaml, its data (manifests of input
directories, hashes of input files) and the code under its deps, all as dvc.yaml lists them. The same command
after an interruption finds the same directory and goes on; a change finds another one. A finished run is marked
and never resumed into nothing.

    run.json  checkpoints/<step>/  model_checkpoints/<step>/  history.jsonl  throughput.jsonl  COMPLETE | PREEMPTED
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from neobert.config.load import PARAMS, read_params
from neobert.errors import PipelineError
from neobert.io import MANIFEST, RunLock, fingerprint, runs_dir, sha256_file, write_json
from neobert.training.launch import is_main_process
from neobert.training.resume import COMPLETE, RUN

log = logging.getLogger(__name__)
PREEMPTED = "PREEMPTED"
TEMPLATE = re.compile(r"\$\{([^}]+)\}")
"""A value of params.yaml in a dependency of dvc.yaml, by its dotted key."""
IGNORED = {"__pycache__", ".cache"}
"""As in .dvcignore: what Python and the hub's downloader leave behind."""


def describe(stage: str, dvc_yaml: str | Path = "dvc.yaml", params_yaml: str | Path = PARAMS) -> dict[str, Any]:
    """What decides a stage's result, as dvc.yaml lists it: {"params": ..., "inputs": ..., "code": ...}.

    Raises:
        PipelineError: dvc.yaml does not name the stage, or an input is missing.
    """
    stages = YAML(typ="safe", pure=True).load(Path(dvc_yaml).read_text())["stages"]
    if stage not in stages:
        raise PipelineError(f"{dvc_yaml}: has no stage {stage}")
    values, params = read_params(params_yaml), {}
    for key in stages[stage].get("params", []):
        if isinstance(key, str):
            params[key] = _lookup(values, key)
    inputs: dict[str, str] = {}
    code: dict[str, str] = {}
    for listed in stages[stage].get("deps", []):
        dep = TEMPLATE.sub(lambda found: str(_lookup(values, found[1])), listed)
        path = Path(dep)
        if not path.exists():
            raise PipelineError(f"{path}: does not exist; run `dvc repro` for the stage that makes it")
        if (path / MANIFEST).is_file():
            inputs[dep] = sha256_file(path / MANIFEST)
        else:
            # A model's directory may hold Python of its own; it is an input all the same, and never run.
            is_code = dep == listed and (path.suffix == ".py" or any(path.glob("**/*.py")))
            kind = code if is_code else inputs
            kind[dep] = _tree_hash(path)
    return {"params": params, "inputs": inputs, "code": code}


def _lookup(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _tree_hash(path: Path) -> str:
    if path.is_file():
        return sha256_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file() and not IGNORED & set(p.relative_to(path).parts))
    # The manifests of splits stand for their shards, which are large and verified on their own.
    manifests = [p for p in files if p.name == MANIFEST]
    return fingerprint({p.relative_to(path).as_posix(): sha256_file(p) for p in manifests or files})


def run_directory(stage: str, parts: dict[str, Any]) -> Path:
    """Where the run that `parts` describes works."""
    return runs_dir() / f"{stage}-{fingerprint(parts)[:16]}"


@contextmanager
def open_scratch(stage: str, parts: dict[str, Any]) -> Iterator[Path]:
    """The locked directory of the run that `parts` describes; `train` works in it.

    Leaving it without an error marks the run complete. A completed run's directory is set aside (`.complete`), so
    that a forced `dvc repro` trains again.

    Raises:
        PipelineError: another process is at work there.
    """
    scratch = run_directory(stage, parts)
    if not is_main_process():
        yield scratch  # rank 0 holds the lock and keeps the files
        return
    with RunLock(scratch):
        if (scratch / COMPLETE).exists():
            _set_aside(scratch)
        write_json(scratch / RUN, {"stage": stage, "fingerprint": fingerprint(parts)[:16], "parts": parts})
        log.info("run directory %s", scratch)
        yield scratch
        (scratch / COMPLETE).touch()
        (scratch / PREEMPTED).unlink(missing_ok=True)


def _set_aside(scratch: Path) -> None:
    """Keep a completed run's files beside the new one's, in place of an older one's."""
    aside = scratch.with_name(scratch.name + ".complete")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for path in scratch.iterdir():
        if path.name not in (".lock", "owner.json"):
            path.rename(aside / path.name)
    log.info("this run was completed before; it is trained again, the old files are in %s", aside)
