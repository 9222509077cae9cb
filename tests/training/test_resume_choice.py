"""Which checkpoint a run goes on from: this run's, a shorter one's, another run's, one that is named, or none."""

import shutil
from pathlib import Path

import pytest

from neobert.errors import PipelineError
from neobert.io import read_json, write_json
from neobert.training.resume import COMPLETE
from neobert.training.signals import Preempted
from tests.training import tiny
from tests.training.test_resume import Interrupting, lines


class Noting:
    """A source that notes which samples it is asked for."""

    def __init__(self):
        self.inner, self.asked = tiny.source(), []
        self.samples_per_epoch = self.inner.samples_per_epoch

    def micro_batches(self, samples_seen, global_batch_size, *others):
        self.asked.append(samples_seen)
        return self.inner.micro_batches(samples_seen, global_batch_size, *others)


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


def test_another_max_steps_than_the_runs_own_extends_nothing(tmp_path, caplog):
    """A warm-up of another length leaves other weights to train, whatever the scheduler allows."""
    caplog.set_level("INFO")
    for name, steps in (("tiny-a", 2), ("tiny-b", 40)):
        (tmp_path / name).mkdir()
        described(tmp_path / name, contrastive={"embedding_warmup": {"trainer": {"max_steps": steps}}})
    tiny.run(tmp_path / "tiny-a", {"max_steps": 4}, scheduler={"name": "constant"})
    tiny.run(tmp_path / "tiny-b", {"max_steps": 8}, scheduler={"name": "constant"})
    assert "resumed from" not in caplog.text
    assert "of other params.contrastive.embedding_warmup.trainer.max_steps; it is left alone" in caplog.text


@pytest.mark.parametrize("section", ["longer_context", "contrastive"])
def test_a_section_that_nests_its_trainer_is_extended_too(tmp_path, caplog, section):
    caplog.set_level("INFO")
    for name, steps in (("tiny-a", 4), ("tiny-b", 8)):
        (tmp_path / name).mkdir()
        described(tmp_path / name, **{section: {"trainer": {"max_steps": steps}}})
        tiny.run(tmp_path / name, {"max_steps": steps}, scheduler={"name": "constant"})
    assert "resumed from " + str(tmp_path / "tiny-a" / "checkpoints" / "4") in caplog.text


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


def test_a_figure_that_is_no_longer_counted_ends_with_the_run_that_counted_it(tmp_path):
    """Stopped between two logs, so the window holds hits that the new run never adds to."""
    counting = tiny.objective()
    counting.accuracy = True
    with pytest.raises(Preempted):
        tiny.run(tmp_path / "tiny-a", source=Interrupting(5), runtime={"num_workers": 0}, objective=counting)
    result = tiny.run(tmp_path / "tiny-b", runtime={"resume_from_checkpoint": "latest"})
    assert [row["step"] for row in result.history if "accuracy" in row] == [2, 4]
    assert "window.accuracy" not in tiny.tensors(tmp_path / "tiny-b" / "checkpoints" / "12")


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


@pytest.mark.parametrize("finished", ["mark", "suffix"])
def test_a_finished_run_is_not_called_interrupted(tmp_path, caplog, finished):
    caplog.set_level("INFO")
    old = tmp_path / ("tiny-old.complete" if finished == "suffix" else "tiny-old")
    old.mkdir()
    described(old, optimizer={"lr": 1})
    tiny.run(old)
    if finished == "mark":
        (old / COMPLETE).touch()
    (tmp_path / "tiny-new").mkdir()
    described(tmp_path / "tiny-new", optimizer={"lr": 2})
    tiny.run(tmp_path / "tiny-new", {"max_steps": 2})
    assert f"{old}: a finished run of 12 steps and other params.optimizer.lr; it is left alone" in caplog.text
    assert "interrupted" not in caplog.text


@pytest.mark.parametrize("below", ["", "checkpoints"])
def test_a_run_named_by_its_directory_is_continued(tmp_path, caplog, below):
    """As the log names it; the newest that is whole is meant."""
    tiny.run(tmp_path / "old")
    (tmp_path / "old" / "checkpoints" / "12" / "state.json").write_text("{}")
    settings = {"resume_from_checkpoint": str(tmp_path / "old" / below)}
    source = Noting()
    tiny.run(tmp_path / "new", runtime={**settings, "num_workers": 0}, source=source)
    assert source.asked[0] == 64
    assert "DAMAGED CHECKPOINT passed over" in caplog.text
    (tmp_path / "old" / "checkpoints" / "8" / "state.json").write_text("{}")
    with pytest.raises(PipelineError, match=r"resume_from_checkpoint: .*old.* holds no whole checkpoint; name"):
        tiny.run(tmp_path / "another", runtime=settings)


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


@pytest.mark.parametrize("way", ["absolute", "symlink"])
def test_a_runs_own_checkpoint_by_another_spelling_of_its_path(tmp_path, monkeypatch, way):
    """`runs/` is relative, and may be a link to a larger disk."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    scratch = Path("runs/tiny-a")
    straight = tiny.run(scratch)
    root = tmp_path if way == "absolute" else tmp_path / "link"
    if way == "symlink":
        root.symlink_to(tmp_path)
    asked = str(root / "disk" / "tiny-a" / "checkpoints" / "8")
    again = tiny.run(scratch, runtime={"resume_from_checkpoint": asked})
    assert tiny.same_state(straight.state_dict, again.state_dict)
    assert straight.history == again.history


def keep_best(scratch, step):
    (scratch / "best").mkdir(parents=True, exist_ok=True)
    (scratch / "best" / "best.safetensors").write_text(f"{scratch.name} {step}")
    write_json(scratch / "best" / "best.json", {"step": step})


@pytest.mark.parametrize(
    ("resume", "own", "other", "left"),
    [
        ("auto", 12, None, "mine 12"),  # goes on from 12
        ("auto", 10, None, "mine 10"),  # its newest is damaged: 9 to 12 follow once more
        (8, 8, None, "mine 8"),
        (8, 10, None, None),
        ("path", 4, None, None),
        ("path", 4, 8, "other 8"),
        ("path", 4, 12, None),
        (False, 4, None, None),
    ],
)
def test_the_best_model_is_one_of_the_course_that_goes_on(tmp_path, resume, own, other, left, caplog):
    mine, theirs = tmp_path / "mine", tmp_path / "other"
    tiny.run(mine, runtime={"save_total_limit": 3})
    keep_best(mine, own)
    if resume == "path":
        tiny.run(theirs)
        resume = str(theirs / "checkpoints" / "8")
        if other is not None:
            keep_best(theirs, other)
    if own == 10 and resume == "auto":
        (mine / "checkpoints" / "12" / "state.json").write_text("{}")
    tiny.run(mine, runtime={"resume_from_checkpoint": resume, "save_total_limit": 3})
    kept = mine / "best" / "best.safetensors"
    assert (kept.read_text() if kept.exists() else None) == left
    assert (mine / "best" / "best.json").exists() == (left is not None)
    assert ("that of the steps until then was replaced" in caplog.text) == (other == 12 or (own, resume) == (10, 8))
    if isinstance(resume, str) and resume != "auto":
        steps = sorted(int(p.name) for p in (mine / "checkpoints").iterdir())
        assert steps == [12], "its own 4 and 8 are of the course that it left"


def test_a_run_told_to_start_anew_says_how_to_go_on_instead(tmp_path):
    settings = {"num_workers": 0, "resume_from_checkpoint": False}
    with pytest.raises(Preempted, match=r"resume_from_checkpoint: auto to go on; with false the same command starts"):
        tiny.run(tmp_path, runtime=settings, source=Interrupting(5))


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
