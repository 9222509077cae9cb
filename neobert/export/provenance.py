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


def lock_facts(lock: Path, without: Iterable[str]) -> dict[str, str]:
    """Hashes of every out and of the params of every stage in ``dvc.lock`` but those named ``without``.

    Empty where there is no lock file (a stage run by hand).
    """
    if not lock.is_file():
        return {}
    stages: dict[str, Any] = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8")).get("stages", {})
    kept = {name: stage for name, stage in stages.items() if name not in set(without)}
    outs = {out["path"]: out["md5"] for stage in kept.values() for out in stage.get("outs", []) if "md5" in out}
    params = {
        f"params of {name}": fingerprint(stage["params"])[:32] for name, stage in kept.items() if "params" in stage
    }
    return {**dict(sorted(outs.items())), **dict(sorted(params.items()))}


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
