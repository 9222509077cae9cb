"""A clone of the project in which experiments run, and the way of their results into the project.

`dvc exp run` writes the settings into params.yaml of the workspace it is called in; with `--temp` or `--queue` it
stashes the user's changes there first, and a kill at that moment leaves them in a git stash and params.yaml altered.
So experiments run in a clone of HEAD, which shares the project's DVC cache, and a finished one is fetched into the
project as the reference by which `dvc exp` knows it. The project's files are never touched, whatever is killed, and may
be edited while a sweep runs.

    runs/ablation/<sweep>/workspace   the clone, made anew by each start
    runs/ablation/<sweep>/runs        scratch of its stages: an interrupted training goes on from there
    runs/ablation/<sweep>/*.log       output of each run

Cost: a local clone and a checkout from the cache (links where the filesystem can), a second or two.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ruamel.yaml import YAML

from benchmarks.ablation.sweep import Run, set_params
from neobert.config.load import PARAMS
from neobert.errors import PipelineError

COMPLETE = "COMPLETE"
"""What a finished training leaves in its scratch: `neobert.training.scratch.COMPLETE`, without its import of torch."""


def output(directory: Path, *command: str) -> str:
    """What a command prints, without the last newline.

    Raises:
        PipelineError: it fails; the message is its own.
    """
    done = subprocess.run(command, cwd=directory, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise PipelineError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.rstrip("\n")


def environment() -> dict[str, str]:
    """This interpreter's `python` and `dvc` first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def head(project: Path) -> str:
    """The commit that a sweep runs.

    Raises:
        PipelineError: what the pipeline reads has changes that are not committed; runs would leave them out.
    """
    stages = YAML(typ="safe", pure=True).load((project / "dvc.yaml").read_text())["stages"].values()
    read = {"dvc.yaml", PARAMS, *(dep for stage in stages for dep in stage.get("deps", []))}
    changes = output(project, "git", "status", "--porcelain", "--", *sorted(read))
    if changes:
        raise PipelineError(f"a sweep runs the last commit, and this is not in it; commit it first:\n{changes}")
    return output(project, "git", "rev-parse", "HEAD")


def reference(commit: str, name: str) -> str:
    """The git reference of an experiment on top of `commit`."""
    return f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"


def finished(project: Path, commit: str, run: Run) -> bool:
    """Whether the project has this experiment with exactly these params."""
    name = f"{reference(commit, run.name)}:{PARAMS}"
    show = subprocess.run(["git", "show", name], cwd=project, capture_output=True, text=True, check=False)
    return show.returncode == 0 and YAML(typ="safe", pure=True).load(show.stdout) == run.params


class Workspace:
    """The clone, held by one program at a time: ``with Workspace.open(...) as workspace: workspace.run(...)``."""

    def __init__(self, project: Path, commit: str, home: Path, lock: IO[str]) -> None:
        self.project, self.commit, self.home, self.lock = project, commit, home, lock
        self.directory, self.scratch = home / "workspace", home / "runs"

    @classmethod
    @contextlib.contextmanager
    def open(cls, project: Path, commit: str, runs: Path, sweep: str) -> Iterator[Workspace]:
        """A fresh clone at `commit` with the stages' data from the cache.

        The lock is handed down to `dvc exp run`: an orphan whose parent was killed still holds it.

        Raises:
            PipelineError: the same sweep is at work, in this or in an orphaned process.
        """
        home = (runs / "ablation" / sweep).resolve()
        home.mkdir(parents=True, exist_ok=True)
        with open(home / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise PipelineError(f"{home}: this sweep is at work; wait for it or end its `dvc exp run`") from error
            workspace = cls(project, commit, home, lock)
            workspace.collect()  # what an orphan finished
            workspace.make()
            yield workspace

    def make(self) -> None:
        """Clone, share the cache and check the data out."""
        shutil.rmtree(self.directory, ignore_errors=True)
        output(self.project, "git", "clone", "--quiet", "--no-checkout", str(self.project), str(self.directory))
        for key in ("user.name", "user.email"):
            if value := self._setting(key):
                output(self.directory, "git", "config", key, value)
        output(self.directory, "git", "checkout", "--quiet", "--detach", self.commit)
        cache = output(self.project, "dvc", "cache", "dir")
        output(self.directory, "dvc", "config", "--local", "cache.dir", cache)
        output(self.directory, "dvc", "checkout", "--quiet", "--allow-missing")

    def _setting(self, key: str) -> str:
        show = subprocess.run(["git", "config", key], cwd=self.project, capture_output=True, text=True, check=False)
        return show.stdout.strip()

    def run(self, run: Run, target: str) -> bool:
        """One experiment; false when it failed (its log, beside the clone, says why).

        What ends this program interrupts the run as Ctrl-C would: dvc then waits for the stage, and a training saves.
        """
        output(self.directory, "git", "reset", "--quiet", "--hard", self.commit)
        output(self.directory, "git", "clean", "--quiet", "-fd")
        settings = [part for setting in set_params(run.settings) for part in ("-S", setting)]
        command = ["dvc", "exp", "run", "--name", run.name, *settings, target]
        with open(self.log(run), "w") as log:
            process = subprocess.Popen(
                command,
                cwd=self.directory,
                env={**environment(), "NEOBERT_RUNS_DIR": str(self.scratch)},
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[self.lock.fileno()],
                start_new_session=True,
            )
            try:
                code = process.wait()
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
                process.wait()
                raise
        self.collect()
        for mark in self.scratch.glob(f"*/{COMPLETE}"):  # its model is in the cache, its figures in the project
            shutil.rmtree(mark.parent)
        return code == 0

    def log(self, run: Run) -> Path:
        """Where the run's output goes."""
        return self.home / f"{run.name}.log"

    def collect(self) -> None:
        """Fetch the clone's finished experiments into the project (no file of it changes)."""
        if (self.directory / ".git").is_dir():
            references = reference(self.commit, "*")
            output(self.project, "git", "fetch", "--quiet", str(self.directory), f"+{references}:{references}")


def shown(project: Path, commit: str) -> dict[str, dict[str, Any]]:
    """The metrics of each experiment on top of `commit` by its name, from `dvc exp show`: {name: {file: values}}."""
    found = {}
    for row in json.loads(output(project, "dvc", "exp", "show", "--json", "--rev", commit)):
        for experiment in row["experiments"] or []:
            for revision in experiment["revs"]:
                files = (revision["data"] or {}).get("metrics") or {}
                found[revision["name"]] = {file: entry.get("data") or {} for file, entry in files.items()}
    return found
