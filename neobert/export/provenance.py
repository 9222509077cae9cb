"""Where a model comes from, for its card: hashes of weights, tokenizer, code, data and params, and training's results.

DVC's lock file already holds a hash of every out and the params of every stage that ran, so it is read rather than
computed anew. No timings and no host names: equal models get equal cards.
"""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers
from ruamel.yaml import YAML

from neobert.io import fingerprint, read_json, sha256_file
from neobert.model.storage import WEIGHTS, ModelInfo


def git_commit() -> str | None:
    """The commit that the working tree is at; None outside a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def provenance(source: Path, info: ModelInfo) -> dict[str, str]:
    """What identifies the model in ``source``: weights, tokenizer, code, library."""
    found = {
        "weights of the trained model (sha256)": sha256_file(source / WEIGHTS),
        "tokenizer.json (sha256)": info.tokenizer_sha256,
        "transformers": transformers.__version__,
    }
    commit = git_commit()
    if commit is not None:
        found["code (git commit)"] = commit
    return found


def locked_upstream(lock: Path, out: str) -> dict[str, Any]:
    """The stages of ``dvc.lock`` that ``out`` was made by, directly or not, in the lock's order.

    A training may start from another directory than the stage before it makes; that stage is then none of these.
    Empty where there is no lock file (a stage run by hand).
    """
    if not lock.is_file():
        return {}
    stages: dict[str, Any] = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8")).get("stages", {})
    maker = {entry["path"]: name for name, stage in stages.items() for entry in stage.get("outs", [])}
    todo, found = [out], set()
    while todo:
        name = maker.get(todo.pop())
        if name is not None and name not in found:
            found.add(name)
            todo.extend(dep["path"] for dep in stages[name].get("deps", []))
    return {name: stage for name, stage in stages.items() if name in found}


def lock_facts(stages: dict[str, Any]) -> dict[str, str]:
    """Hashes of every out and data dependency, and of the params, of locked stages."""
    entries = [e for stage in stages.values() for key in ("deps", "outs") for e in stage.get(key, []) if "md5" in e]
    data = {e["path"]: e["md5"] for e in entries if not e["path"].startswith(("neobert/", "stages/"))}
    params = {
        f"params of {name}": fingerprint(stage["params"])[:32] for name, stage in stages.items() if "params" in stage
    }
    return {**dict(sorted(data.items())), **dict(sorted(params.items()))}


def metric_facts(reports: Path, stages: Iterable[str]) -> dict[str, str]:
    """Every number of ``reports/<stage>/metrics.json`` of the stages that have one."""
    found: dict[str, str] = {}
    for stage in stages:
        path = reports / stage / "metrics.json"
        if path.is_file():
            found.update((f"{stage}: {name}", f"{value:.6g}") for name, value in sorted(_numbers(read_json(path))))
    return found


def _numbers(value: Any, prefix: str = "") -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _numbers(inner, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, value)] if isinstance(value, int | float) and not isinstance(value, bool) else []
