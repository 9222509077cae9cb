"""Trackers get what the history holds, go on where a run goes on, and can neither change nor end a training."""

import importlib.machinery
import json
import sys
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neobert.config.runtime import RuntimeConfig
from neobert.config.schema import parse
from neobert.errors import PipelineError
from neobert.io import write_json
from tests.training import tiny


def evaluate(module, step):
    return {"loss": 1.0 + step}


def tensorboard_rows(directory, tag):
    found = EventAccumulator(str(directory), purge_orphaned_data=True).Reload()
    return {event.step: event.value for event in found.Scalars(tag)}


def test_tensorboard_holds_the_history_and_goes_on_after_a_resume(tmp_path):
    settings = {"report_to": ["tensorboard"], "timing": True}
    trainer = {"eval_steps": 6}
    plain = tiny.run(tmp_path / "plain", trainer, evaluate=evaluate)
    tiny.run(tmp_path / "run", trainer, settings, evaluate=evaluate)
    resumed = tiny.run(tmp_path / "run", trainer, {**settings, "resume_from_checkpoint": 8}, evaluate=evaluate)
    assert tiny.same_state(plain.state_dict, resumed.state_dict)
    assert plain.history == resumed.history
    for tag, key in (("train/loss", "loss"), ("train/lr", "lr"), ("eval/loss", "eval_loss")):
        expected = {row["step"]: pytest.approx(row[key], rel=1e-6) for row in resumed.history if key in row}
        assert tensorboard_rows(tmp_path / "run" / "tensorboard", tag) == expected
    assert list(tensorboard_rows(tmp_path / "run" / "tensorboard", "speed/timing/data_wait/p50_ms"))[-1] == 12
    assert not (tmp_path / "plain" / "tensorboard").exists()


def test_dvclive_keeps_to_the_runs_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # as `dvc repro` sets for its stages
    settings = {"report_to": ["dvclive"]}
    result = tiny.run(tmp_path / "run", None, settings)
    tiny.run(tmp_path / "run", None, {**settings, "resume_from_checkpoint": 8})
    metrics = json.loads((tmp_path / "run" / "dvclive" / "metrics.json").read_text())
    assert metrics["train"]["loss"] == pytest.approx(result.history[-1]["loss"])
    rows = (tmp_path / "run" / "dvclive" / "plots" / "metrics" / "train" / "loss.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == ["step", "2", "4", "6", "8", "10", "12", "10", "12"]
    assert {path.name for path in tmp_path.iterdir()} == {".dvc", "run"}  # DVC's own place, which git ignores


class Service(ModuleType):
    """A tracking service's package, as far as accelerate uses it; it notes what it is told."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.calls, self.config, self.broken = [], self, False

    def init(self, **options):
        if self.broken:
            raise ConnectionError("no route")
        self.calls.append(("init", options))
        return self

    def update(self, values, **_):
        self.calls.append(("params", values))

    def log(self, values, step):
        if self.broken:
            raise ConnectionError("gone")
        self.calls.append(("log", (step, values)))

    def finish(self):
        self.calls.append(("finish", None))

    def of(self, kind):
        return [what for name, what in self.calls if name == kind]


@pytest.fixture
def services(monkeypatch):
    found = {name: Service(name) for name in ("wandb", "trackio")}
    for name, service in found.items():
        monkeypatch.setitem(sys.modules, name, service)
    return found


def test_a_run_is_named_by_stage_and_fingerprint_and_continued(tmp_path, services):
    parts = {"params": {"trainer": {"lr": 0.1, "layers": [1, 2]}}, "inputs": {}, "code": {}}
    write_json(tmp_path / "run.json", {"stage": "tiny", "fingerprint": "abc", "parts": parts})
    settings = {"report_to": ["wandb", "trackio"], "project": "mine"}
    for resume in ("auto", 8, False):
        tiny.run(tmp_path, None, {**settings, "resume_from_checkpoint": resume})
    first, resumed, _ = services["wandb"].of("init")
    assert (first["project"], first["name"], first["resume"], first["dir"]) == (
        "mine",
        "tiny-abc",
        "allow",
        str(tmp_path),
    )
    assert first["id"] == resumed["id"]
    assert first["id"].startswith("tiny-abc-")
    assert services["trackio"].of("init")[0] == {"project": "mine", "name": first["id"], "resume": "allow"}
    assert services["wandb"].of("params")[0] == {"trainer.lr": 0.1, "trainer.layers": "[1, 2]"}
    assert len(services["wandb"].of("params")) == 2  # at each new start
    assert len(services["wandb"].of("finish")) == 3
    logged = [step for step, values in services["trackio"].of("log") if "train/loss" in values]
    assert logged == [2, 4, 6, 8, 10, 12, 10, 12, 2, 4, 6, 8, 10, 12]
    assert all(isinstance(v, int | float) for _, values in services["wandb"].of("log") for v in values.values())


def test_a_tracker_that_fails_later_is_left_out_and_ended_with_an_error(tmp_path, services, caplog):
    def fails(module, step):
        raise RuntimeError("the evaluation failed")

    plain = tiny.run(tmp_path / "plain")

    def breaks(module, step):
        services["wandb"].broken = True
        return {"loss": 1.0}

    settings = {"report_to": ["wandb", "trackio"]}
    result = tiny.run(tmp_path / "run", {"eval_steps": 6}, settings, evaluate=breaks)
    assert tiny.same_state(plain.state_dict, result.state_dict)
    assert caplog.text.count("wandb failed and is left out") == 1
    assert max(step for step, _ in services["trackio"].of("log")) == 12
    services["wandb"].broken = False
    with pytest.raises(RuntimeError, match="the evaluation failed"):
        tiny.run(tmp_path / "error", {"eval_steps": 6}, settings, evaluate=fails)
    assert services["wandb"].calls[-1] == ("finish", None)


def test_what_cannot_start_is_refused_before_any_step(tmp_path, services, monkeypatch):
    services["wandb"].broken = True
    with pytest.raises(PipelineError, match=r"runtime\.report_to: wandb cannot start \(ConnectionError: no route\)"):
        tiny.run(tmp_path, None, {"report_to": ["trackio", "wandb"]})
    assert services["trackio"].calls[-1] == ("finish", None)
    assert not services["trackio"].of("log")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    problems = []
    parse(RuntimeConfig, {"report_to": ["dvclive"]}, "runtime", problems)
    assert problems == [
        "runtime.report_to: ['dvclive'] needs the package dvclive, which is not installed: pip install dvclive"
    ]
