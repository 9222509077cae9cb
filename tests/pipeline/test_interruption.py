"""An interrupted `dvc repro` records nothing, and the next one goes on from where it stopped."""

import os
import signal
import subprocess
import time

from tests.pipeline.conftest import edit_params, environment, run_in


def rows(project):
    return sum(len(path.read_text().splitlines()) for path in (project / "runs").glob("pretrain-*/history.jsonl"))


def test_a_stopped_repro_goes_on(working_copy):
    edit_params(working_copy, {"trainer": {"max_steps": 2000, "eval_steps": None}, "runtime": {"save_steps": 50}})
    before = (working_copy / "dvc.lock").read_text()
    already = rows(working_copy)
    command = ["dvc", "repro", "-s", "pretrain"]
    with open(working_copy / "first.log", "w") as log:
        first = subprocess.Popen(
            command, cwd=working_copy, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 90
        while rows(working_copy) < already + 20 and first.poll() is None:
            assert time.monotonic() < deadline, (working_copy / "first.log").read_text()
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGTERM)  # as a scheduler ends a job: dvc and the stage alike
        assert first.wait(timeout=60) != 0
    runs = working_copy / "runs"
    while not (marks := list(runs.glob("pretrain-*/PREEMPTED"))) or list(runs.glob("pretrain-*/owner.json")):
        assert time.monotonic() < deadline + 60, (working_copy / "first.log").read_text()
        time.sleep(0.05)  # dvc does not wait for its child, which saves first
    (mark,) = marks
    assert mark.read_text().startswith("SIGTERM at step")
    assert (working_copy / "dvc.lock").read_text() == before
    assert not (working_copy / "models" / "pretrained" / "model.safetensors").exists()
    second = run_in(working_copy, *command)
    assert "resumed from" in second.all
    assert (working_copy / "models" / "pretrained" / "model.safetensors").is_file()
    assert "max_steps: 2000" in (working_copy / "dvc.lock").read_text()
