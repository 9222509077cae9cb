"""A tiny project that every fault test starts from: built once by the real stages, copied for each test."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from neobert.config.profile import editor, merge

ROOT = Path(__file__).resolve().parents[2]
STAGES = (
    "corpus",
    "tokenizer",
    "tokenize",
    "pack",
    "pretrain",
    "pack_long",
    "longer_context",
    "contrastive_preprocess",
    "contrastive_finetune",
    "export",
    "evaluate",
)


class Zygote:
    """The process that forks stages (see `tests.faults.zygote`)."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "tests.faults.zygote"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ended: dict[int, int] = {}
        assert self._read() == {"ready": True}

    def _read(self) -> dict:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def start(self, module: str, cwd: Path, env: dict[str, str], log: Path, largest_file: int = 0) -> int:
        order = {"module": module, "cwd": str(cwd), "env": env, "log": str(log), "largest_file": largest_file}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        while "status" in (answer := self._read()):
            self.ended[answer["pid"]] = answer["status"]
        return answer["pid"]

    def wait(self, pid: int) -> int:
        while pid not in self.ended:
            answer = self._read()
            self.ended[answer["pid"]] = answer["status"]
        return self.ended.pop(pid)


@dataclass
class Project:
    """A copy of the tiny project, and its stages as processes."""

    path: Path
    zygote: Zygote
    env: dict[str, str] = field(default_factory=dict)

    def set(self, **sections) -> None:
        """Change params.yaml."""
        yaml = editor()
        params = yaml.load((self.path / "params.yaml").read_text())
        merge(params, sections)
        with open(self.path / "params.yaml", "w") as handle:
            yaml.dump(params, handle)

    def start(self, stage: str, largest_file: int = 0) -> int:
        """Start a stage and return its pid; writes beyond `largest_file` bytes of a file fail (0: none do)."""
        log = self.path / f"{stage}.log"
        return self.zygote.start(f"stages.{stage}", self.path, self.env, log, largest_file)

    def finish(self, pid: int) -> int:
        """Wait for a stage; its exit status, negative for a signal."""
        return self.zygote.wait(pid)

    def run(self, stage: str, largest_file: int = 0) -> int:
        """Run a stage to its end; its exit status."""
        return self.finish(self.start(stage, largest_file))

    def fails(self, stage: str, message: str, largest_file: int = 0) -> None:
        """Run a stage that must end with status 1 and one line, `error: ...` with this regular expression in it."""
        said = len(self.log(stage))
        assert self.run(stage, largest_file) == 1, self.log(stage)[-3000:]
        log = self.log(stage)[said:]
        assert "Traceback" not in log, log[-3000:]
        errors = log[log.index("error: ") :]
        assert re.search(message, errors, re.DOTALL), errors

    def log(self, stage: str) -> str:
        """What the stage has said so far, over all its runs."""
        path = self.path / f"{stage}.log"
        return path.read_text() if path.exists() else ""

    def good(self, stage: str) -> None:
        """Run a stage that must succeed."""
        assert self.run(stage) == 0, self.log(stage)[-3000:]

    def kill_when(self, stage: str, condition: Callable[[], bool], number: int = signal.SIGKILL) -> int:
        """Start a stage, signal it once `condition` holds, and return its exit status."""
        pid = self.start(stage)
        deadline = time.monotonic() + 60
        while not condition():
            assert pid not in self.zygote.ended
            assert time.monotonic() < deadline, self.log(stage)[-3000:]
            time.sleep(0.002)
        self.signal(pid, number)
        return self.finish(pid)

    @staticmethod
    def signal(pid: int, number: int) -> None:
        """Signal a stage; if it has ended already, its status will say so."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def scratch(self, stage: str) -> Path:
        """The run directory of a stage."""
        found = [p for p in (self.path / "runs").glob(f"{stage}-*") if not p.name.endswith(".complete")]
        return max(found, key=lambda p: p.stat().st_mtime)

    def outs(self, stage: str) -> list[Path]:
        """A stage's outs, as dvc.yaml lists them."""
        described = YAML(typ="safe", pure=True).load((self.path / "dvc.yaml").read_text())["stages"][stage]
        names = []
        for key in ("outs", "metrics", "plots"):
            names += [next(iter(o)) if isinstance(o, dict) else o for o in described.get(key, [])]
        return [self.path / name for name in names]

    def content(self, stage: str) -> dict[str, bytes]:
        """Every byte of a stage's outs."""
        files = [f for out in self.outs(stage) for f in ([out] if out.is_file() else sorted(out.rglob("*")))]
        return {str(f.relative_to(self.path)): f.read_bytes() for f in files if f.is_file()}

    def forget(self, stage: str) -> None:
        """Remove a stage's outs, as DVC does before it runs it."""
        for out in self.outs(stage):
            shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def zygote():
    process = Zygote()
    yield process
    assert process.process.stdin is not None
    process.process.stdin.close()
    process.process.wait(timeout=60)


@pytest.fixture(scope="session")
def base(tmp_path_factory, zygote) -> Project:
    """The tiny project after all its data stages."""
    path = tmp_path_factory.mktemp("faults") / "project"
    path.mkdir()
    for name in ("neobert", "stages"):  # copies: the fingerprint of a run must not change under a test
        shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, path / name)
    (path / "data" / "raw").mkdir(parents=True)
    project = Project(path, zygote)
    tiny = YAML(typ="safe", pure=True).load((ROOT / "tests" / "pipeline" / "tiny.yaml").read_text())
    project.set(**tiny)
    for stage in ("corpus", "tokenizer", "tokenize", "pack"):
        project.good(stage)
    return project


@pytest.fixture
def project(base, tmp_path) -> Project:
    """A copy of the tiny project for one test to break."""
    path = tmp_path / "project"
    shutil.copytree(base.path, path, symlinks=True, ignore=shutil.ignore_patterns("*.log", "shards", "timings"))
    return Project(path, base.zygote)
