"""Trap 10: an interrupted run ends bitwise where the undisturbed one does; damaged checkpoints and failed saves."""

import contextlib
import os
import pickle
import shutil
import signal

import pytest
import torch
from safetensors import SafetensorError

from neobert.errors import PipelineError
from neobert.io import clear_write_errors, read_json, verify_manifest, write_manifest
from neobert.training.signals import Preempted
from tests.training import tiny

DROPOUT = {"dropout": 0.1}


class Interrupting:
    """A source that has this process signalled while a given step's batches are made."""

    def __init__(self, step, number=signal.SIGTERM):
        self.inner, self.step, self.number = tiny.source(), step, number
        self.samples_per_epoch = self.inner.samples_per_epoch

    def micro_batches(self, samples_seen, global_batch_size, *others):
        if samples_seen == self.step * global_batch_size:
            os.kill(os.getpid(), self.number)
        return self.inner.micro_batches(samples_seen, global_batch_size, *others)


def lines(scratch):
    return (scratch / "history.jsonl").read_text()


def test_a_run_killed_at_any_point_and_resumed_ends_bitwise_equal(tmp_path):
    """Stops at uneven points, between logs, saves and epochs; dropout on, so random state counts."""
    undisturbed = tiny.run(tmp_path / "a", model=DROPOUT, runtime={"num_workers": 0})
    for step in (1, 3, 4, 7, 10):
        with pytest.raises(Preempted, match=r"run the same command again"):
            tiny.run(tmp_path / "b", model=DROPOUT, source=Interrupting(step), runtime={"num_workers": 0})
        assert (tmp_path / "b" / "PREEMPTED").read_text().startswith("SIGTERM at step")
    resumed = tiny.run(tmp_path / "b", model=DROPOUT)
    assert tiny.same_state(undisturbed.state_dict, resumed.state_dict)
    assert undisturbed.history == resumed.history
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    a, b = (tiny.tensors(tmp_path / run / "checkpoints" / "12") for run in "ab")
    assert tiny.same_state(a, b), "moments, counters and sums too"


def test_what_a_crash_loses_is_redone_exactly(tmp_path):
    """As after kill -9: only committed checkpoints remain, the history may be longer or end in half a line."""
    undisturbed = tiny.run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "12")
    (tmp_path / "b" / "checkpoints" / ".saving-12").mkdir()
    with open(tmp_path / "b" / "history.jsonl", "a") as handle:
        handle.write('{"step": 14, "los')
    resumed = tiny.run(tmp_path / "b")
    assert tiny.same_state(undisturbed.state_dict, resumed.state_dict)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert not (tmp_path / "b" / "checkpoints" / ".saving-12").exists()


@pytest.mark.parametrize("step", [0, 2])
def test_an_evaluation_before_the_first_step_is_recorded_once(tmp_path, step):
    """A run stopped before its first checkpoint evaluates step 0 again."""
    evaluate = {"evaluate": lambda module, step: {"loss": float(step)}, "evaluate_first": True}
    undisturbed = tiny.run(tmp_path / "a", **evaluate)
    with pytest.raises(Preempted):
        tiny.run(tmp_path / "b", source=Interrupting(step), runtime={"num_workers": 0}, **evaluate)
    if step == 2:
        shutil.rmtree(tmp_path / "b" / "checkpoints")
    resumed = tiny.run(tmp_path / "b", **evaluate)
    assert undisturbed.history == resumed.history
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_an_evaluation_in_between_changes_nothing(tmp_path):
    def evaluate(module, step):
        assert not module.training
        return {"draw": torch.rand(()).item()}

    plain = tiny.run(tmp_path / "a", model=DROPOUT)
    evaluated = tiny.run(tmp_path / "b", {"eval_steps": 3}, model=DROPOUT, evaluate=evaluate)
    assert tiny.same_state(plain.state_dict, evaluated.state_dict)
    assert [row["step"] for row in evaluated.history if "eval_draw" in row] == [3, 6, 9, 12]


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "metadata"])
def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path, damage, caplog):
    undisturbed = tiny.run(tmp_path)
    newest = tmp_path / "checkpoints" / "12"
    shard = newest / ("__0_0.distcp" if damage != "metadata" else ".metadata")
    data = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    elif damage == "truncate":
        shard.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    resumed = tiny.run(tmp_path)
    assert "DAMAGED CHECKPOINT passed over" in caplog.text
    assert "checkpoints/8" in caplog.text
    assert tiny.same_state(undisturbed.state_dict, resumed.state_dict)
    verify_manifest(newest)  # the damaged one was made anew


def test_damaged_metadata_is_not_unpickled_to_see_whether_it_fits(tmp_path, caplog):
    """Some flipped bits make the unpickler fail in ways of its own, or crash: hashes come first."""
    undisturbed = tiny.run(tmp_path)
    (tmp_path / "checkpoints" / "12" / ".metadata").write_bytes(pickle.dumps("not metadata"))
    resumed = tiny.run(tmp_path, runtime={"resume_from_checkpoint": "latest"})
    assert "DAMAGED CHECKPOINT passed over" in caplog.text
    assert tiny.same_state(undisturbed.state_dict, resumed.state_dict)


def test_a_damaged_checkpoint_asked_for_by_name_is_an_error(tmp_path):
    tiny.run(tmp_path)
    with open(tmp_path / "checkpoints" / "8" / "__0_0.distcp", "r+b") as handle:
        handle.seek(100)
        handle.write(b"\xff\xff\xff")
    with pytest.raises(PipelineError, match="sha256 differs"):
        tiny.run(tmp_path, runtime={"resume_from_checkpoint": 8})
    with pytest.raises(PipelineError, match=r"'5'.*does not exist; this run has checkpoints: 8, 12"):
        tiny.run(tmp_path, runtime={"resume_from_checkpoint": "5"})


class Malicious:
    """Unpickled naively, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_planted_pickle_is_refused_and_not_run(tmp_path):
    tiny.run(tmp_path)
    checkpoint, trace = tmp_path / "checkpoints" / "12", tmp_path / "it-ran"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Malicious(trace)))
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, {"step": 12})  # a forger would fit the hashes too
    with pytest.raises(PipelineError, match=r"names (_?io)\.open, .* nothing in it was run"):
        tiny.run(tmp_path)
    assert not trace.exists()


def test_a_checkpoint_of_another_model_is_refused_with_its_differences(tmp_path):
    tiny.run(tmp_path)
    with pytest.raises(PipelineError, match=r"does not fit.*\n.*\(64, 16\).* in the checkpoint, \(64, 32\)"):
        tiny.run(tmp_path, model={"hidden_size": 32})
    with pytest.raises(PipelineError, match=r"not in the checkpoint"):
        tiny.run(tmp_path, model={"num_hidden_layers": 2})


@pytest.mark.parametrize("unfit", ["model", "max_steps"])
def test_a_refused_checkpoint_costs_the_run_none_of_its_own(tmp_path, unfit):
    mine, other = tmp_path / "mine", tmp_path / "other"
    tiny.run(mine)
    before = lines(mine)
    tiny.run(other, {"max_steps": 2}, model={"hidden_size": 32} if unfit == "model" else {})
    settings = {"resume_from_checkpoint": str(other / "checkpoints" / "2")}
    with pytest.raises(PipelineError, match="does not fit" if unfit == "model" else r"max_steps \(1\) is less than"):
        tiny.run(mine, {"max_steps": 12 if unfit == "model" else 1}, settings)
    assert sorted(p.name for p in (mine / "checkpoints").iterdir()) == ["12", "8"]
    assert lines(mine) == before


def test_old_checkpoints_are_removed_and_counters_kept(tmp_path):
    tiny.run(tmp_path, {"max_steps": 8}, {"save_steps": 2, "save_total_limit": 3})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "6", "8"]
    state = read_json(tmp_path / "checkpoints" / "8" / "state.json")
    assert state == {"step": 8, "samples_seen": 64, "max_steps": 8, "seed": 7, "world": 1, "resumed_from": None}


def test_a_model_directory_comes_with_each_checkpoint(tmp_path):
    seen = {}

    def save_model(directory, state):
        (directory / "model").write_text("saved")
        seen[directory.name] = state

    result = tiny.run(tmp_path, save_model=save_model)
    assert sorted(p.name for p in (tmp_path / "model_checkpoints").iterdir()) == ["12", "8"]
    last = seen[".saving-12"]
    assert all(torch.equal(value, result.state_dict[key]) for key, value in last.items())


@pytest.mark.parametrize("named", [False, True])
def test_a_failed_save_ends_the_run_and_leaves_earlier_ones(tmp_path, monkeypatch, named):
    import neobert.training.checkpoint as module

    write = module.write_manifest

    def full(directory, extra):
        with clear_write_errors(directory) if named and extra["step"] == 8 else contextlib.nullcontext():
            if extra["step"] != 8:
                return write(directory, extra)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_manifest", full)
    with pytest.raises(PipelineError, match=r"checkpoints/8: the checkpoint could not be written.*No space left"):
        tiny.run(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["4"]
    monkeypatch.setattr(module, "write_manifest", write)
    assert tiny.same_state(tiny.run(tmp_path).state_dict, tiny.run(tmp_path / "undisturbed").state_dict)


@pytest.mark.parametrize("error", ["of the disk", "of safetensors", "that is clear already"])
def test_a_failed_model_directory_is_named_and_leaves_nothing(tmp_path, error):
    """The checkpoint that it is made from is whole by then, and the next run goes on from it."""

    def full(directory, state):
        (directory / "model").write_text("half")
        if error == "of safetensors":
            raise SafetensorError("I/O error: No space left on device")
        with clear_write_errors(directory / "model") if error == "that is clear already" else contextlib.nullcontext():
            raise OSError(28, "No space left on device")

    where = r"No space left on device.*checkpoints/4 is whole.*run the same command again"
    with pytest.raises(PipelineError, match=rf"model_checkpoints/4: .*could not be written.*{where}") as failure:
        tiny.run(tmp_path, save_model=full)
    assert "checkpoints/4: the checkpoint" not in str(failure.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["4"]
    assert not list((tmp_path / "model_checkpoints").iterdir())
    (tmp_path / "model_checkpoints" / ".saving-4").mkdir()  # of a process that was killed there
    resumed = tiny.run(tmp_path, save_model=lambda directory, state: None)
    assert resumed.history[-1]["step"] == 12
    assert sorted(p.name for p in (tmp_path / "model_checkpoints").iterdir()) == ["12", "8"]


def test_an_old_checkpoint_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    import neobert.training.checkpoint as module

    remove = module.shutil.rmtree

    def busy(path, **options):
        if path.name == "4":
            raise OSError(16, "Device or resource busy", str(path))
        remove(path, **options)

    monkeypatch.setattr(module.shutil, "rmtree", busy)
    with pytest.raises(PipelineError, match=r"checkpoints/4: an old checkpoint could not be removed.*resource busy"):
        tiny.run(tmp_path)
    assert (tmp_path / "checkpoints" / "12" / "manifest.json").is_file()
