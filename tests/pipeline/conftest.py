"""A small copy of the whole pipeline in its own git and DVC repository, run once a session.

The copy has the project's code, dvc.yaml and params.yaml, the latter shrunk to a few packages, a tiny model and a
handful of steps, so that a full `dvc repro` takes about a minute on two cores.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML

from neobert.config.profile import editor, merge

ROOT = Path(__file__).resolve().parents[2]
TINY = Path(__file__).parent / "tiny.yaml"


def environment() -> dict[str, str]:
    """This interpreter's own `python` and `dvc` first, a git identity, one thread."""
    names = {
        f"GIT_{role}_{what}": f"tests@{role.lower()}.example"
        for role in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVC_", "NEOBERT_"))}
    return {**kept, **names, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}


def run_in(directory: Path, *command: str, check: bool = True) -> SimpleNamespace:
    """Run a command in a copy; on failure show its whole output."""
    done = subprocess.run(command, cwd=directory, env=environment(), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
    return SimpleNamespace(out=done.stdout, err=done.stderr, code=done.returncode, all=done.stdout + done.stderr)


def stages_run(result: SimpleNamespace) -> list[str]:
    """The stages that a `dvc repro` or `dvc exp run` executed, in order."""
    lines = (line for line in result.all.splitlines() if line.startswith("Running stage"))
    return [line.split("'")[1] for line in lines]


def edit_params(directory: Path, values: dict) -> None:
    """Write ``values`` (nested) into a copy's params.yaml, as a user would by hand."""
    yaml = editor()
    path = directory / "params.yaml"
    params = yaml.load(path.read_text())
    merge(params, values)
    with open(path, "w") as handle:
        yaml.dump(params, handle)


def make_copy(target: Path) -> Path:
    """The project's files (tracked, or new and not ignored) in a git repository of their own, with tiny params."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "reports/", "dvc.lock", "docs/", "benchmarks/")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    edit_params(target, YAML(typ="safe", pure=True).load(TINY.read_text()))
    run_in(target, "git", "init", "-q", "-b", "main")
    run_in(target, "dvc", "config", "cache.type", "hardlink,copy")
    run_in(target, "git", "add", "-A")
    run_in(target, "git", "commit", "-q", "-m", "Start")
    return target


def clone(source: Path, target: Path) -> Path:
    """A fresh clone of a copy: its commits, none of its cache."""
    run_in(source, "git", "clone", "-q", str(source), str(target))
    return target


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory) -> Path:
    """The small copy after one whole `dvc repro`, committed. Tests must leave it as they found it."""
    project = make_copy(tmp_path_factory.mktemp("pipeline") / "project")
    run_in(project, "dvc", "repro")
    run_in(project, "git", "add", "-A")
    run_in(project, "git", "commit", "-q", "-m", "Reproduce")
    return project


@pytest.fixture
def working_copy(reproduced, tmp_path) -> Path:
    """A clone that shares the reproduced copy's cache, for a test to change."""
    project = clone(reproduced, tmp_path / "copy")
    run_in(project, "dvc", "cache", "dir", "--local", str(reproduced / ".dvc" / "cache"))
    run_in(project, "dvc", "checkout", "-q")
    return project
