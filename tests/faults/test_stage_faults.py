"""Faults of every stage: killed or out of disk it leaves nothing that passes for whole, and it runs again equal."""

import random
import shutil
import signal
import time

import pytest

from tests.faults.conftest import STAGES, Project

TINY = {"trainer": {"max_steps": 4, "eval_steps": 2}}


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The tiny project with every stage done, the bytes of their outs, and how long each took."""
    path = tmp_path_factory.mktemp("whole") / "project"
    shutil.copytree(base.path, path, symlinks=True, ignore=shutil.ignore_patterns("*.log", "runs"))
    project = Project(path, base.zygote)
    project.set(**TINY)
    contents, seconds = {}, {}
    for stage in STAGES:
        start = time.monotonic()
        project.good(stage)
        contents[stage], seconds[stage] = project.content(stage), time.monotonic() - start
    return project, contents, seconds


def begin_again(project, stage):
    """As before the stage's first run: no outs, and none of its scratch."""
    project.forget(stage)
    for scratch in (project.path / "runs").iterdir():
        if scratch.name != "timings":
            shutil.rmtree(scratch)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_the_middle_it_runs_again_equal(whole, stage):
    project, contents, seconds = whole
    begin_again(project, stage)
    pid = project.start(stage)
    time.sleep(random.Random(stage).uniform(0.3, 0.9) * seconds[stage])
    project.signal(pid, signal.SIGKILL)
    assert project.finish(pid) in (0, -signal.SIGKILL), project.log(stage)[-3000:]
    project.forget(stage)  # DVC removes outs before it runs a stage
    project.good(stage)
    assert project.content(stage) == contents[stage]


@pytest.mark.parametrize(("stage", "largest"), [("tokenize", 20_000), ("pack", 20_000), ("export", 20_000)])
def test_a_full_disk_is_one_clear_line_and_the_rerun_is_equal(whole, stage, largest):
    project, contents, _ = whole
    begin_again(project, stage)
    project.fails(stage, "cannot be written|could not be written", largest_file=largest)
    assert not any((out / "manifest.json").exists() for out in project.outs(stage))
    project.forget(stage)
    project.good(stage)
    assert project.content(stage) == contents[stage]
