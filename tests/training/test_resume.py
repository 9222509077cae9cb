"""Trap 10: an interrupted run ends bitwise where the undisturbed one does; and which checkpoint a run goes on from."""

import os
import pickle
import shutil
import signal

import pytest
import torch

from neobert.errors import PipelineError
from neobert.io import read_json, verify_manifest, write_json, write_manifest
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


class Noting:
    """A source that notes which samples it is asked for."""

    def __init__(self):
        self.inner, self.asked = tiny.source(), []
        self.samples_per_epoch = self.inner.samples_per_epoch

    def micro_batches(self, samples_seen, global_batch_size, *others):
        self.asked.append(samples_seen)
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


def described(directory, **params):
    write_json(directory / "run.json", {"stage": "tiny", "parts": {"params": params, "code": {"x": "1"}}})


def test_auto_goes_on_with_more_steps_only_where_the_schedule_allows_it(tmp_path, caplog):
    caplog.set_level("INFO")
    constant = {"name": "constant", "warmup_steps": 2}
    long = tiny.run(tmp_path / "reference", scheduler=constant)
    (tmp_path / "tiny-a").mkdir()
    described(tmp_path / "tiny-a", trainer={"max_steps": 8})
    tiny.run(tmp_path / "tiny-a", {"max_steps": 8}, scheduler=constant)
    (tmp_path / "tiny-b").mkdir()
    described(tmp_path / "tiny-b", trainer={"max_steps": 12})
    prolonged = tiny.run(tmp_path / "tiny-b", scheduler=constant)
    assert "resumed from" in caplog.text
    assert tiny.same_state(long.state_dict, prolonged.state_dict)

    caplog.clear()
    (tmp_path / "tiny-c").mkdir()
    described(tmp_path / "tiny-c", trainer={"max_steps": 14})
    tiny.run(tmp_path / "tiny-c", {"max_steps": 14})
    assert "not continued, scheduler cosine depends on max_steps" in caplog.text


@pytest.mark.parametrize(
    ("scheduler", "steps", "reason"),
    [
        ({"name": "wsd", "decay_steps": 2}, 16, "12: not continued, scheduler wsd depends on max_steps"),
        ({"name": "constant"}, 10, "12: not continued, it is not before trainer.max_steps (10)"),
    ],
)
def test_auto_goes_back_to_the_last_checkpoint_that_fits_other_max_steps(tmp_path, caplog, scheduler, steps, reason):
    caplog.set_level("INFO")
    straight = tiny.run(tmp_path / "reference", {"max_steps": steps}, scheduler=scheduler)
    for name, number in (("tiny-a", 12), ("tiny-b", steps)):
        (tmp_path / name).mkdir()
        described(tmp_path / name, trainer={"max_steps": number})
    tiny.run(tmp_path / "tiny-a", scheduler=scheduler)
    changed = tiny.run(tmp_path / "tiny-b", {"max_steps": steps}, scheduler=scheduler)
    assert "resumed from " + str(tmp_path / "tiny-a" / "checkpoints" / "8") in caplog.text
    assert reason in caplog.text
    assert tiny.same_state(straight.state_dict, changed.state_dict)
    assert straight.history == changed.history


def test_a_damaged_checkpoint_of_a_shorter_run_is_passed_over(tmp_path, caplog):
    caplog.set_level("INFO")
    for name, steps in (("tiny-a", 8), ("tiny-b", 12)):
        (tmp_path / name).mkdir()
        described(tmp_path / name, trainer={"max_steps": steps})
    tiny.run(tmp_path / "tiny-a", {"max_steps": 8}, scheduler={"name": "constant"})
    (tmp_path / "tiny-a" / "checkpoints" / "8" / "state.json").write_text('{"step": 8, "max')
    tiny.run(tmp_path / "tiny-b", scheduler={"name": "constant"})
    assert "DAMAGED CHECKPOINT passed over" in caplog.text
    assert "resumed from " + str(tmp_path / "tiny-a" / "checkpoints" / "4") in caplog.text


def test_latest_crosses_code_edits_and_says_so(tmp_path, caplog):
    undisturbed = tiny.run(tmp_path / "reference")
    (tmp_path / "tiny-old").mkdir()
    described(tmp_path / "tiny-old", trainer={"max_steps": 12}, optimizer={"lr": 1})
    with pytest.raises(Preempted):
        tiny.run(tmp_path / "tiny-old", source=Interrupting(5), runtime={"num_workers": 0})
    (tmp_path / "tiny-wider").mkdir()
    tiny.run(tmp_path / "tiny-wider", {"max_steps": 2}, model={"hidden_size": 32})
    (tmp_path / "tiny-new").mkdir()
    described(tmp_path / "tiny-new", trainer={"max_steps": 12}, optimizer={"lr": 2})
    result = tiny.run(tmp_path / "tiny-new", runtime={"resume_from_checkpoint": "latest"})
    assert "not continued: " in caplog.text, "the newest one is another model's"
    assert "RESUMING ANOTHER RUN" in caplog.text
    assert "params.optimizer.lr" in caplog.text
    assert tiny.same_state(undisturbed.state_dict, result.state_dict)
    assert result.history == undisturbed.history
    assert result.metrics == undisturbed.metrics


def test_another_batch_size_goes_on_in_the_data_where_the_old_one_stopped(tmp_path):
    (tmp_path / "tiny-a").mkdir()
    tiny.run(tmp_path / "tiny-a", {"max_steps": 8})
    (tmp_path / "tiny-b").mkdir()
    source = Noting()
    result = tiny.run(
        tmp_path / "tiny-b",
        {"max_steps": 12, "global_batch_size": 4},
        {"num_workers": 0, "resume_from_checkpoint": "latest"},
        source=source,
    )
    assert source.asked == [64, 68, 72, 76]
    assert [row["samples"] for row in result.history] == [16, 32, 48, 64, 72, 80]
    assert read_json(tmp_path / "tiny-b" / "checkpoints" / "12" / "state.json")["samples_seen"] == 80


def test_latest_does_not_hand_a_finished_run_through(tmp_path):
    (tmp_path / "tiny-old.complete").mkdir()
    finished = tiny.run(tmp_path / "tiny-old.complete")
    (tmp_path / "tiny-new").mkdir()
    again = tiny.run(tmp_path / "tiny-new", {"max_steps": 8}, {"resume_from_checkpoint": "latest"})
    assert [row["step"] for row in again.history] == [2, 4, 6, 8]
    assert again.history[0]["lr"] == finished.history[0]["lr"]


def test_auto_names_an_interrupted_run_of_other_params_and_leaves_it(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "tiny-old").mkdir()
    described(tmp_path / "tiny-old", optimizer={"lr": 1})
    with pytest.raises(Preempted):
        tiny.run(tmp_path / "tiny-old", source=Interrupting(5), runtime={"num_workers": 0})
    (tmp_path / "tiny-new").mkdir()
    described(tmp_path / "tiny-new", optimizer={"lr": 2})
    tiny.run(tmp_path / "tiny-new")
    assert "interrupted run at step 5 of other params.optimizer.lr" in caplog.text
    assert "resumed from" not in caplog.text


def test_false_starts_anew(tmp_path):
    a = tiny.run(tmp_path, {"max_steps": 4})
    b = tiny.run(tmp_path, {"max_steps": 4}, {"resume_from_checkpoint": False})
    assert a.history == b.history
    assert lines(tmp_path).count('"step": 2,') == 1


@pytest.mark.parametrize("by", ["step", "path"])
def test_a_named_checkpoint_seeds_a_run_once(tmp_path, by, caplog):
    """The same command again goes on from what the run has done since, though the named one may be pruned by then."""
    straight = tiny.run(tmp_path / "run")
    other = tmp_path / "other"
    if by == "path":
        tiny.run(other)
    first = str(other / "checkpoints" / "8") if by == "path" else "8"
    settings = {"num_workers": 0, "resume_from_checkpoint": first, "save_steps": 1}
    with pytest.raises(Preempted):
        tiny.run(tmp_path / "run", runtime=settings, source=Interrupting(10))
    if by == "path":
        shutil.rmtree(other)
    source = Noting()
    resumed = tiny.run(tmp_path / "run", runtime=settings, source=source)
    assert source.asked[0] in (80, 88)
    assert f"{first}: this run has gone on from there to step 1" in caplog.text
    assert tiny.same_state(straight.state_dict, resumed.state_dict)
    assert straight.history == resumed.history
    tiny.run(tmp_path / "run", runtime={**settings, "resume_from_checkpoint": "11"}, source=(source := Noting()))
    assert source.asked == [88], "another one named is gone back to"


def test_a_run_told_to_start_anew_says_how_to_go_on_instead(tmp_path):
    settings = {"num_workers": 0, "resume_from_checkpoint": False}
    with pytest.raises(Preempted, match=r"resume_from_checkpoint: auto to go on; with false the same command starts"):
        tiny.run(tmp_path, runtime=settings, source=Interrupting(5))


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


@pytest.mark.parametrize(("resume", "kept"), [(False, ["4", "7"]), (4, ["4", "7"]), ("auto", ["8", "9"])])
def test_model_directories_of_a_course_that_was_left_are_removed(tmp_path, resume, kept):
    """They would outlast the new ones, which have lower steps."""

    def save_model(directory, state):
        (directory / "model").write_text("saved")

    settings = {"num_workers": 0, "save_total_limit": 3}
    tiny.run(tmp_path, runtime=settings, save_model=save_model)
    if resume == "auto":  # the newest is damaged
        (tmp_path / "checkpoints" / "12" / "state.json").write_text("{}")
    settings |= {"resume_from_checkpoint": resume, "save_total_limit": 2}
    with pytest.raises(Preempted):
        tiny.run(tmp_path, runtime=settings, save_model=save_model, source=Interrupting(9 if resume == "auto" else 7))
    for directory in ("checkpoints", "model_checkpoints"):
        assert sorted(p.name for p in (tmp_path / directory).iterdir()) == kept


def test_a_failed_save_ends_the_run_and_leaves_earlier_ones(tmp_path, monkeypatch):
    import neobert.training.checkpoint as module

    write = module.write_manifest

    def full(directory, extra):
        if extra["step"] == 8:
            raise OSError(28, "No space left on device")
        return write(directory, extra)

    monkeypatch.setattr(module, "write_manifest", full)
    with pytest.raises(PipelineError, match=r"checkpoints/8: the checkpoint could not be written.*No space left"):
        tiny.run(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["4"]
    monkeypatch.setattr(module, "write_manifest", write)
    assert tiny.same_state(tiny.run(tmp_path).state_dict, tiny.run(tmp_path / "undisturbed").state_dict)
