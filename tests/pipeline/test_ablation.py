"""A sweep over a toy stage: the table's numbers, interruption, and a project that stays as it was."""

import fcntl
import json
import os
import signal
import statistics
import subprocess
import sys
import time

import pytest

from benchmarks.ablation import workspace
from benchmarks.ablation.sweep import plan, read_sweep
from benchmarks.ablation.table import markdown
from benchmarks.markers import between
from neobert.errors import PipelineError
from neobert.training import scratch
from tests.pipeline.conftest import ROOT, environment, run_in

STAGE = """
import json, os, time
from pathlib import Path
from ruamel.yaml import YAML
params = YAML(typ="safe", pure=True).load(Path("params.yaml"))
seed, lr = params["seed"], params["optimizer"]["lr"]
with open(os.environ["TOY"] + "/started", "a") as log:
    log.write(f"{lr} {seed} {os.getpid()}\\n")
while lr == 2.0 and os.path.exists(os.environ["TOY"] + "/hold"):
    time.sleep(0.05)
if lr == 13.0:
    raise SystemExit("the stage fails")
Path("metrics.json").write_text(json.dumps({"eval": {"loss": 10 * seed + lr * (seed + 1)}}))
"""
FILES = {
    "toy.py": STAGE,
    "params.yaml": "seed: 42  # a comment\noptimizer: {lr: 0.5}\n",
    "dvc.yaml": "stages:\n  toy:\n    cmd: python toy.py\n    deps: [toy.py]\n    params: [seed, optimizer]\n"
    "    metrics: [{metrics.json: {cache: false}}]\n",
    ".gitignore": "/runs/\n/benchmarks/\n/toy/\n",
    "notes.md": "Before.\n<!-- ablation:sweep -->\n<!-- /ablation:sweep -->\nAfter.\n",
}
SWEEP = """
target: toy
metrics: [{file: metrics.json, key: eval.loss, label: loss}]
seeds: [0, 1]
baseline: low
variants:
  low: [optimizer.lr=1]
  high: [optimizer.lr=2, "optimizer.betas=[0.8,0.9]"]
"""


@pytest.fixture
def project(tmp_path):
    for name, text in {**FILES, "sweep.yaml": SWEEP}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "toy").mkdir()
    run_in(tmp_path, "git", "init", "-q", "-b", "main")
    run_in(tmp_path, "dvc", "init", "-q")
    run_in(tmp_path, "git", "add", "-A")
    run_in(tmp_path, "git", "commit", "-q", "-m", "Start")
    return tmp_path


def start(project, *arguments):
    command = [sys.executable, "-m", "benchmarks.ablation", *arguments]
    env = {**environment(), "PYTHONPATH": str(ROOT), "TOY": str(project / "toy"), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=project, env=env, text=True, **pipes)


def sweep(project, *arguments):
    process = start(project, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def started(project):
    """(lr, seed, pid) of each time that the stage began."""
    log = project / "toy" / "started"
    return [tuple(map(float, line.split())) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited 30 s in vain")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def released(project):
    with open(project / "runs" / "ablation" / "sweep" / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def untouched(project):
    assert run_in(project, "git", "status", "--porcelain").out == ""
    assert run_in(project, "git", "stash", "list").out == ""
    assert (project / "params.yaml").read_text() == FILES["params.yaml"]


def test_a_killed_sweep_goes_on_and_its_table_is_right(project):
    (project / "toy" / "hold").touch()
    first = start(project, "sweep.yaml")
    wait_for(lambda: len(started(project)) == 2)
    untouched(project)
    first.kill()
    first.communicate()
    untouched(project)

    code, _, error = sweep(project, "sweep.yaml")  # what the killed one had begun is still at work
    assert code == 1
    assert "this sweep is at work" in error
    os.kill(int(started(project)[1][2]), signal.SIGKILL)
    wait_for(lambda: released(project))

    second = start(project, "sweep.yaml")
    wait_for(lambda: len(started(project)) == 3)
    second.terminate()
    assert "1 of 4 runs are there; 3 to go" in second.communicate()[1]
    assert not alive(int(started(project)[2][2]))
    untouched(project)

    (project / "toy" / "hold").unlink()
    code, out, error = sweep(project, "sweep.yaml")
    assert code == 0, error
    assert [(lr, seed) for lr, seed, _ in started(project)] == [(1, 0), (2, 0), (2, 0), (2, 0), (1, 1), (2, 1)]
    untouched(project)
    # low: 1, 12; high: 2, 14; so the difference is 1, 2.
    low, high, difference = (statistics.stdev(values) for values in ((1, 12), (2, 14), (1, 2)))
    table = (
        "| variant | seeds | loss | minus low |\n|---|---:|---:|---:|\n"
        f"| low | 2 | 6.5000 ± {low:.4f} | – |\n| high | 2 | 8.0000 ± {high:.4f} | +1.5000 ± {difference:.4f} |"
    )
    assert out.startswith(table)
    record = json.loads(out.splitlines()[-1])
    assert record["results"]["high"] == {"0": {"loss": 2.0}, "1": {"loss": 14.0}}

    code, out, _ = sweep(project, "sweep.yaml", "--table", "--write", "notes.md")
    assert code == 0
    assert len(started(project)) == 6
    assert between(project / "notes.md", "ablation:sweep") == table
    assert (project / "notes.md").read_text().startswith("Before.\n")
    assert (project / "benchmarks" / "results" / "ablation_sweep.png").is_file()


def test_a_failing_run_is_named_and_the_others_go_on(project):
    (project / "sweep.yaml").write_text(SWEEP.replace("lr=1]", "lr=13]"))
    code, out, error = sweep(project, "sweep.yaml", "--seeds", "0")
    assert code == 1
    assert "| high | 1 | 2.0000 | – |" in out
    assert "sweep-low-0.log" in error.splitlines()[-1]
    assert "the stage fails" in (project / "runs" / "ablation" / "sweep" / "sweep-low-0.log").read_text()
    assert run_in(project, "git", "status", "--porcelain").out == " M sweep.yaml\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lr=2", "lrr=2"), "optimizer.lrr: unknown key"),
        (("lr=2", "lr=fast"), "optimizer.lr: 'fast' is not a number"),
        (("optimizer.lr=2", '"optimizer.lr=1,2"'), "variants.high: optimizer.lr=1,2"),
        (("lr=2,", "lr=2, optimizer.lr=3,"), "high sets optimizer.lr twice"),
        (('lr=2, "optimizer.betas=[0.8,0.9]"', "lr=1"), "has the same params as low"),
        (("target: toy", "target: boy"), "target: boy is not a stage"),
        (("file: metrics", "file: metric"), "metric.json is no stage's metrics file; there are metrics.json"),
        (("baseline: low", "baseline: medium"), "'medium' is not a variant; there are low, high"),
        (("[0, 1]", "[0, 0]"), "must be at least one, each once"),
    ],
)
def test_a_mistake_is_refused_before_any_run(tmp_path, change, message):
    for name, text in {**FILES, "sweep.yaml": SWEEP.replace(*change)}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(PipelineError) as refused:
        plan(read_sweep(tmp_path / "sweep.yaml"), tmp_path)
    assert message in str(refused.value)


def test_finished_trainings_are_known_by_their_mark():
    assert workspace.COMPLETE == scratch.COMPLETE


def test_what_is_not_committed_is_refused(project):
    (project / "params.yaml").write_text("seed: 43\noptimizer: {lr: 0.5}\n")
    code, _, error = sweep(project, "sweep.yaml")
    assert code == 1
    assert "a sweep runs the last commit, and this is not in it" in error
    assert not started(project)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_sweeps_fit_params_and_their_tables_are_in_the_documents(path):
    ours = read_sweep(path)
    assert len(plan(ours, ROOT)) == len(ours.variants) * len(ours.seeds)
    shown = between(ROOT / "docs" / "experiments.md", f"ablation:{ours.name}")
    recorded = ROOT / "benchmarks" / "results" / f"ablation_{ours.name}.json"
    if recorded.is_file():
        assert shown == markdown(ours, json.loads(recorded.read_text())["results"])
