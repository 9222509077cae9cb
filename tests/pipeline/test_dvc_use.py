"""What people do with the pipeline under DVC, on a small copy of it."""

import json

from neobert.config.load import load
from neobert.config.optimizer import OptimizerConfig
from tests.pipeline.conftest import clone, edit_params, run_in, stages_run

DATA_STAGES = ["corpus", "tokenizer", "tokenize", "pack", "pack_long", "contrastive_preprocess"]
TRAINING = ["pretrain", "longer_context", "contrastive_finetune", "export", "evaluate"]


def test_second_repro_does_nothing(reproduced):
    result = run_in(reproduced, "dvc", "repro")
    assert stages_run(result) == []
    assert "up to date" in result.all
    assert run_in(reproduced, "git", "status", "--porcelain").out == ""


def test_lock_check_agrees_and_notices_an_edit(working_copy):
    assert run_in(working_copy, "python", "-m", "stages.lock_check").code == 0
    edit_params(working_copy, {"optimizer": {"lr": 0.123}})
    answer = run_in(working_copy, "python", "-m", "stages.lock_check", check=False)
    assert answer.code == 1
    assert "not in step" in answer.err


def test_fresh_clone_without_cache_rebuilds_the_same_data(reproduced, tmp_path):
    project = clone(reproduced, tmp_path / "clone")
    assert sorted(stages_run(run_in(project, "dvc", "repro", *DATA_STAGES))) == sorted(DATA_STAGES)
    assert run_in(project, "git", "diff", "dvc.lock").out == ""


def test_experiment_with_more_steps_trains_again_and_packs_nothing(working_copy):
    changes = ("-S", "trainer.max_steps=5", "-S", "optimizer.lr=2e-5")
    assert stages_run(run_in(working_copy, "dvc", "exp", "run", "-n", "longer", *changes)) == TRAINING
    optimizer = load(OptimizerConfig, "optimizer", working_copy / "params.yaml")
    assert optimizer.lr == 2e-5  # a number, as typed, through Hydra's and DVC's own readers and writers
    shown = json.loads(run_in(working_copy, "dvc", "exp", "show", "--json").out)
    assert "longer" in json.dumps(shown)
    assert "trainer.max_steps" in run_in(working_copy, "dvc", "params", "diff").out
    changed = json.loads(run_in(working_copy, "dvc", "metrics", "diff", "--json").out)
    assert any("reports/" in name for name in changed)
    plots = run_in(working_copy, "dvc", "plots", "diff", "--json").out
    assert "history.csv" in plots


def test_changing_packing_and_back_reuses_the_shards(working_copy):
    edit_params(working_copy, {"packing": {"max_length": 48}})
    assert stages_run(run_in(working_copy, "dvc", "repro", "pack")) == ["pack"]
    run_in(working_copy, "git", "checkout", "params.yaml")
    result = run_in(working_copy, "dvc", "repro", "pack")
    assert stages_run(result) == []
    assert "is cached - skipping run" in result.all


def test_editing_the_trainer_reruns_training_only(working_copy):
    trainer = working_copy / "neobert" / "training" / "trainer.py"
    trainer.write_text(trainer.read_text() + "\n# An edit.\n")
    # A dry run cannot know whether the new weights will differ, so it stops at the trainings.
    assert stages_run(run_in(working_copy, "dvc", "repro", "--dry")) == TRAINING[:3]


def test_push_and_pull_restore_data_and_models_without_a_stage(working_copy, tmp_path):
    remote = tmp_path / "remote"
    run_in(working_copy, "dvc", "remote", "add", "-d", "store", str(remote))
    run_in(working_copy, "git", "commit", "-q", "-am", "Add a remote")
    run_in(working_copy, "dvc", "push", "-q")
    other = clone(working_copy, tmp_path / "other")
    run_in(other, "dvc", "pull", "-q")
    assert (other / "models" / "export" / "model.safetensors").is_file()
    assert (other / "data" / "packed" / "train" / "manifest.json").is_file()
    assert stages_run(run_in(other, "dvc", "repro")) == []


def test_a_mistake_anywhere_stops_the_first_stage_before_any_work(working_copy):
    edit_params(working_copy, {"evaluation": {"mteb_batch_size": "many"}, "corpus": {"validation_fraction": 0.02}})
    result = run_in(working_copy, "dvc", "repro", "corpus", check=False)
    assert result.code != 0
    assert "evaluation.mteb_batch_size: 'many' is not an integer" in result.all
    assert "Traceback" not in result.all
