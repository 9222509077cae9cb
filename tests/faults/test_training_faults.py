"""Faults of a training stage: each time a clear message, earlier state intact, and a rerun that ends equal."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

STEPS = {"trainer": {"max_steps": 40, "eval_steps": 20}, "runtime": {"save_steps": 2, "logging_steps": 2}}


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory):
    """The bytes of models/pretrained and its reports after an undisturbed run."""
    import shutil

    from tests.faults.conftest import Project

    path = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(base.path, path, symlinks=True, ignore=shutil.ignore_patterns("*.log"))
    project = Project(path, base.zygote)
    project.set(**STEPS)
    project.good("pretrain")
    return project.content("pretrain")


@pytest.fixture
def pretraining(project):
    project.set(**STEPS)
    return project


def history(project):
    try:
        return len((project.scratch("pretrain") / "history.jsonl").read_text().splitlines())
    except (ValueError, FileNotFoundError):  # no run directory, or no history in it yet
        return 0


def test_killed_at_twenty_random_points_it_ends_bitwise_equal(pretraining, undisturbed):
    pretraining.set(runtime={"save_steps": 1})
    chance, kills = random.Random(0), 0
    while kills < 20:
        pid = pretraining.start("pretrain")
        time.sleep(chance.uniform(0.05, 0.5))
        pretraining.signal(pid, signal.SIGKILL)
        status = pretraining.finish(pid)
        if status == 0:
            break  # it was done before it could be killed
        assert status == -signal.SIGKILL, pretraining.log("pretrain")[-3000:]
        kills += 1
    pretraining.good("pretrain")
    assert kills >= 8, "a run this fast is not interrupted often enough; give it more steps"
    assert pretraining.content("pretrain") == undisturbed


def test_sigterm_saves_and_says_so_and_the_next_run_goes_on(pretraining, undisturbed):
    status = pretraining.kill_when("pretrain", lambda: history(pretraining) >= 3, signal.SIGTERM)
    assert status == 1
    assert "stopped by SIGTERM after step" in pretraining.log("pretrain")
    assert (pretraining.scratch("pretrain") / "PREEMPTED").is_file()
    assert not (pretraining.path / "models" / "pretrained").exists()
    pretraining.good("pretrain")
    assert "resumed from" in pretraining.log("pretrain")
    assert not (pretraining.scratch("pretrain") / "PREEMPTED").exists()
    assert pretraining.content("pretrain") == undisturbed


def test_a_second_run_is_refused_and_the_first_is_undisturbed(pretraining, undisturbed):
    pid = pretraining.start("pretrain")
    while history(pretraining) < 2:
        time.sleep(0.002)
    pretraining.fails("pretrain", r"another run is at work here \(host .*pid \d+\)")
    assert pretraining.finish(pid) == 0
    assert pretraining.content("pretrain") == undisturbed


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing"])
def test_a_damaged_shard_stops_the_run_before_any_step(pretraining, damage):
    (shard,) = (pretraining.path / "data" / "packed" / "train").glob("*.arrow")
    data = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "truncate":
        shard.write_bytes(data[:-100])
    else:
        data[-2000] ^= 1
        shard.write_bytes(data)
    said = {"truncate": "bytes where the manifest says", "flip": "its sha256 differs", "missing": "but missing"}[damage]
    pretraining.fails("pretrain", f"{shard.name}.*{said}.*dvc repro")
    assert history(pretraining) == 0


@pytest.mark.parametrize("damage", ["truncate", "flip", "partial"])
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_equal(pretraining, undisturbed, damage):
    pretraining.kill_when("pretrain", lambda: history(pretraining) >= 5, signal.SIGTERM)
    checkpoints = pretraining.scratch("pretrain") / "checkpoints"
    newest = max(checkpoints.iterdir(), key=lambda p: int(p.name))
    shard = newest / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    if damage == "partial":
        shard.unlink()
    elif damage == "truncate":
        shard.write_bytes(data[:1000])
    else:
        data[len(data) // 3] ^= 4
        shard.write_bytes(data)
    pretraining.good("pretrain")
    assert "DAMAGED CHECKPOINT passed over" in pretraining.log("pretrain")
    assert pretraining.content("pretrain") == undisturbed


def test_a_full_disk_during_a_checkpoint_leaves_the_earlier_ones(pretraining, undisturbed):
    pretraining.kill_when("pretrain", lambda: history(pretraining) >= 3, signal.SIGTERM)
    before = sorted(p.name for p in (pretraining.scratch("pretrain") / "checkpoints").iterdir())
    pretraining.fails("pretrain", "checkpoint could not be written.*earlier checkpoints are intact", largest_file=65536)
    assert sorted(p.name for p in (pretraining.scratch("pretrain") / "checkpoints").iterdir()) == before
    pretraining.good("pretrain")
    assert pretraining.content("pretrain") == undisturbed


def test_no_room_for_checkpoints_is_said_before_the_first_step(pretraining, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges")
    try:
        pretraining.env["NEOBERT_RUNS_DIR"] = str(small)
        pretraining.fails("pretrain", "GiB free where checkpoints need.*NEOBERT_RUNS_DIR")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_output_that_cannot_be_written_is_said_before_the_first_step(pretraining):
    (pretraining.path / "models").write_text("in the way")
    pretraining.fails("pretrain", "models/pretrained: cannot be made, models is not a directory")
    assert history(pretraining) == 0


def test_a_loss_that_is_not_finite_stops_the_run_with_its_batch(pretraining):
    pretraining.set(optimizer={"lr": 1e30}, trainer={"gradient_clipping": None, "max_skipped_steps": 4})
    pretraining.fails("pretrain", r"4 steps in a row.*non-finite.*skipped-step-\d+-rank-0.pt")
    assert list(pretraining.scratch("pretrain").glob("skipped-step-*.pt"))


def test_data_that_ends_begins_anew(pretraining):
    sizes = {"global_batch_size": 1200, "per_device_train_batch_size": 600}
    pretraining.set(trainer={"max_steps": 2, "eval_steps": None, **sizes})
    pretraining.good("pretrain")
    rows = (pretraining.scratch("pretrain") / "history.jsonl").read_text().splitlines()
    assert json.loads(rows[-2])["epoch"] > 1


def test_two_ranks_one_killed_and_both_stopped(pretraining, undisturbed):
    pretraining.set(
        runtime={"distributed": {"num_processes": 2}}, trainer={"per_device_train_batch_size": 4, "eval_max_batches": 2}
    )
    pid = pretraining.start("pretrain")
    while history(pretraining) < 2:
        assert pid not in pretraining.zygote.ended
        time.sleep(0.01)
    ranks = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    started = time.monotonic()
    os.kill(ranks[-1], signal.SIGKILL)
    assert pretraining.finish(pid) == 1
    assert time.monotonic() - started < 60
    assert "was killed by SIGKILL" in pretraining.log("pretrain")

    status = pretraining.kill_when("pretrain", lambda: history(pretraining) >= 8, signal.SIGTERM)
    assert status == 1
    assert "stopped by SIGTERM" in pretraining.log("pretrain")
    pretraining.set(runtime={"distributed": {"num_processes": 1}})
    pretraining.good("pretrain")
    name = "reports/pretrain/history.csv"
    mine, reference = (c[name].decode().splitlines() for c in (pretraining.content("pretrain"), undisturbed))
    assert len(mine) == len(reference)
    for a, b in zip(mine[1:], reference[1:], strict=True):
        for x, y in zip(a.split(","), b.split(","), strict=True):
            assert x == y or float(x) == pytest.approx(float(y), rel=1e-4)
