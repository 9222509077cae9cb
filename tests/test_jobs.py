"""Shard jobs: finished ones are kept through kill -9, errors lose nothing, publishing is by hard link."""

import os
import signal
import subprocess
import sys
import time

import pytest

from neobert.io import read_json
from neobert.jobs import Engine, Job, execute, finished, publish, run_jobs

HERE = "tests.test_jobs"


def write(path, text, seconds=0.0, fail=False):
    """A job's function: writes `text` and counts its runs beside the cache."""
    with open(path, "w") as handle:
        handle.write(text[: len(text) // 2])
        handle.flush()
        time.sleep(seconds)
        if fail:
            raise ValueError("broken")
        handle.write(text[len(text) // 2 :])
    with open(os.environ["RUNS_LOG"], "a") as log:
        log.write(text + "\n")
    return {"characters": len(text)}


def jobs(texts, **arguments):
    return [Job(f"train/{t}.txt", f"key-{t}", f"{HERE}:write", {"text": t, **arguments}) for t in texts]


@pytest.fixture
def log(tmp_path, monkeypatch):
    path = tmp_path / "runs.log"
    path.touch()
    monkeypatch.setenv("RUNS_LOG", str(path))
    return lambda: sorted(path.read_text().split())


def test_finished_jobs_are_not_run_again(tmp_path, log):
    cache = tmp_path / "cache"
    run_jobs(jobs(["aa", "bb"]), cache, "write", Engine(workers=1))
    entries = run_jobs(jobs(["aa", "bb", "cc"]), cache, "write", Engine(workers=2))
    assert log() == ["aa", "bb", "cc"]
    assert list(entries) == ["train/aa.txt", "train/bb.txt", "train/cc.txt"]
    assert entries["train/cc.txt"]["characters"] == 2
    (cache / "key-aa" / "shard").write_text("a")
    assert finished(jobs(["aa"])[0], cache) is None, "a truncated file is not finished"
    (cache / "key-aa" / "shard").write_text("ab")
    assert finished(jobs(["aa"])[0], cache) is None, "nor is a changed one"
    execute(jobs(["aa"])[0], cache)
    assert (cache / "key-aa" / "shard").read_text() == "aa"


def test_a_failing_job_keeps_the_others(tmp_path, log):
    cache = tmp_path / "cache"
    broken = Job("train/x.txt", "key-x", f"{HERE}:write", {"text": "xx", "fail": True})
    with pytest.raises(ValueError, match="broken"):
        run_jobs([*jobs(["aa"]), broken], cache, "write", Engine(workers=1))
    assert log() == ["aa"]
    assert not list((cache / "key-x").glob("*")), "nothing half-written is left"


KILLED = """
from pathlib import Path
from neobert.jobs import Engine, run_jobs
from tests.test_jobs import jobs
import sys
run_jobs(jobs(["aa", "bb"]) + jobs(["cc"], seconds=60.0), Path(sys.argv[1]), "write", Engine(workers=1))
"""


def test_kill_9_keeps_finished_jobs(tmp_path, log):
    cache = tmp_path / "cache"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(cache)])
    deadline = time.monotonic() + 60
    while not (cache / "key-cc").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    entries = run_jobs(jobs(["aa", "bb", "cc"]), cache, "write", Engine(workers=1))
    assert log() == ["aa", "bb", "cc"], "aa and bb ran once, in the killed process"
    assert (cache / "key-cc" / "shard").read_text() == "cc"
    assert len(entries) == 3


def test_publishing_links_and_writes_the_manifest(tmp_path, log):
    cache, out = tmp_path / "cache", tmp_path / "out"
    out.mkdir()
    (out / "stale.txt").write_text("old")
    made = jobs(["aa"])
    entries = run_jobs(made, cache, "write", Engine(workers=1))
    publish(entries, made, cache, out, {"total": 2})
    assert not (out / "stale.txt").exists()
    assert os.path.samefile(out / "train/aa.txt", cache / "key-aa" / "shard")
    manifest = read_json(out / "manifest.json")
    assert manifest["total"] == 2
    assert manifest["files"]["train/aa.txt"]["bytes"] == 2
