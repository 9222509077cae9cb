"""Room on the disk: for what a run will keep, not once more for what an interrupted one has kept already."""

import os
from types import SimpleNamespace

import pytest

from neobert.config.optimizer import OptimizerConfig
from neobert.config.runtime import RuntimeConfig
from neobert.errors import PipelineError
from neobert.training import preflight
from tests.training import tiny

OBJECTIVE, OPTIMIZER = tiny.objective(), OptimizerConfig()
ONE = preflight.bytes_wanted(OBJECTIVE, OPTIMIZER, RuntimeConfig(save_total_limit=1)) // 2
"""Bytes of a checkpoint and its model directory."""


def starts(monkeypatch, scratch, free, limit=2):
    """Whether a run may start where `free` times a checkpoint's bytes are free."""
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=int(free * ONE)))
    runtime = RuntimeConfig(save_total_limit=limit)
    return not list(preflight.problems([], scratch, OBJECTIVE, OPTIMIZER, runtime))


def keep(scratch, step):
    """A checkpoint's bytes, two thirds in it and one in its model directory."""
    for directory, size in (("checkpoints", ONE - ONE // 3), ("model_checkpoints", ONE // 3)):
        path = scratch / directory / str(step) / "file"
        path.parent.mkdir(parents=True)
        path.touch()
        os.truncate(path, size)


@pytest.mark.parametrize(
    ("kept", "limit", "enough", "little"),
    [
        (0, 2, 3.1, 2.9),
        (1, 2, 2.1, 1.9),
        (2, 2, 1.1, 0.9),
        (3, 2, 1.1, 0.9),  # killed between a commit and the removal of the oldest
        (3, 1, 1.1, 0.9),  # the limit was lowered: they go when the next is committed
        (2, 4, 3.1, 2.9),
    ],
)
def test_a_run_resumes_where_it_could_start(tmp_path, monkeypatch, kept, limit, enough, little):
    for step in range(kept):
        keep(tmp_path, step)
    assert starts(monkeypatch, tmp_path, enough, limit)
    assert not starts(monkeypatch, tmp_path, little, limit)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match=r"reports: cannot be made, .*file is not a directory"):
        preflight.check([tmp_path / "file" / "reports"], tmp_path, OBJECTIVE, OPTIMIZER, RuntimeConfig())
