"""GLUE on local fixtures: nine tasks run and are learnt; transfer, seeds, best checkpoint, early stopping."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from transformers import AutoTokenizer

from neobert.config.glue import METRICS, GlueConfig, GlueTrainerConfig
from neobert.config.optimizer import OptimizerConfig
from neobert.config.schema import parse
from neobert.errors import PipelineError
from neobert.evaluation import glue
from neobert.evaluation.glue_data import TASKS, load_task, metrics
from neobert.evaluation.glue_report import summarise, table
from stages import glue as stage
from tests.evaluation.conftest import make_model
from tests.evaluation.test_local_tasks import write_jsonl

TRAINER = GlueTrainerConfig(num_train_epochs=1, per_device_train_batch_size=8)
FAST = OptimizerConfig(lr=3e-3, betas=[0.9, 0.999], weight_decay=0.01)


def rows(task, count, seed):
    """Learnable examples: the label is whether (or how often) the words 'cat' and 'dog' occur."""
    draw = random.Random(seed)
    for _ in range(count):
        texts = [" ".join(draw.choices(["the", "cat", "dog", "red", "x"], k=6)) for _ in task.columns]
        cats = sum("cat" in text for text in texts)
        label = float(cats * 2.5) if task.num_labels == 1 else cats % task.num_labels
        yield {**dict(zip(task.columns, texts, strict=True)), "label": label, "idx": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model and the nine tasks."""
    root = tmp_path_factory.mktemp("glue")
    make_model(root / "model", None)
    for task in TASKS.values():
        write_jsonl(root / "data" / task.name / "train.jsonl", rows(task, 48, 1))
        for number, split in enumerate(task.validation):
            write_jsonl(root / "data" / task.name / f"{split}.jsonl", rows(task, 24, 2 + number))
    return root


def config(place, **changes):
    base = GlueConfig(
        dataset_path=str(place / "data"), pretrained_model_path=str(place / "model"), trainer=TRAINER, optimizer=FAST
    )
    return replace(base, **changes)


def test_all_nine_tasks_run_and_report(place):
    runs = glue.run_glue(config(place), seed=1)
    assert [run.task for run in runs] == list(METRICS)
    found = summarise(runs)
    for name, names in METRICS.items():
        assert set(names) | {"score"} <= set(found[name])
        assert found[name]["score"] == pytest.approx(np.mean([found[name][m] for m in names]), abs=1e-4)
    assert found["mnli"]["accuracy"] == pytest.approx(
        (found["mnli"]["accuracy_matched"] + found["mnli"]["accuracy_mismatched"]) / 2, abs=1e-4
    )
    assert found["average"]["score"] == pytest.approx(np.mean([found[t]["score"] for t in METRICS]), abs=1e-4)
    assert "| stsb |" in table(runs)


def test_a_learnable_task_is_learnt_and_the_best_state_is_scored(place):
    wanted = config(place, task_name="sst2", trainer=replace(TRAINER, num_train_epochs=12, eval_steps=6))
    (run,) = glue.run_glue(wanted, seed=1)
    scores = [row["score"] for row in run.history]
    assert run.best["score"] == max(scores) > 0.8
    assert run.best_step == run.history[scores.index(max(scores))]["step"]  # a tie keeps the earlier state
    again = glue.run_glue(wanted, seed=1)[0]
    assert again.history == run.history


def test_the_weights_of_the_best_checkpoint_are_kept(place, monkeypatch):
    values = iter([0.1, 0.9, 0.3])
    states = []

    def fixed(model, *_):
        states.append({k: v.clone() for k, v in model.encoder.state_dict().items()})
        return {"accuracy": next(values), "score": 0.0}

    monkeypatch.setattr(glue, "validate", fixed)
    trainer = replace(TRAINER, num_train_epochs=3, metric_for_best_model="accuracy")
    (run,) = glue.run_glue(config(place, task_name="rte", trainer=trainer), seed=1)
    assert run.best_step == 12
    assert all(torch.equal(v, states[1][k]) for k, v in run.encoder.state_dict().items())


def test_early_stopping_counts_validations_without_a_better_result(place, monkeypatch):
    values = iter([0.5, 0.6, 0.6, 0.4, 0.9])
    monkeypatch.setattr(glue, "validate", lambda *_: {"score": next(values)})
    trainer = replace(TRAINER, num_train_epochs=5, early_stopping=2)
    (run,) = glue.run_glue(config(place, task_name="rte", trainer=trainer), seed=1)
    assert [row["score"] for row in run.history] == [0.5, 0.6, 0.6, 0.4]
    assert run.best == {"score": 0.6}


def test_transfer_starts_from_the_other_tasks_encoder(place, monkeypatch):
    starts = {}
    original = glue.fine_tune

    def spy(start, task, *rest):
        starts[task.name] = start
        return original(start, task, *rest)

    monkeypatch.setattr(glue, "fine_tune", spy)
    runs = glue.run_glue(config(place, task_name=["rte", "mrpc"], transfer_from_task="mnli"), seed=1)
    assert list(starts) == ["mnli", "mrpc", "rte"]
    assert [run.task for run in runs] == ["mrpc", "rte"]
    assert starts["rte"] is starts["mrpc"] is not starts["mnli"]


def test_seeds_differ_and_random_weights_are_another_start(place):
    runs = glue.run_glue(config(place, task_name="cola", num_seeds=2), seed=1)
    assert runs[0].history != runs[1].history
    assert "score_std" in summarise(runs)["cola"]
    random_start = glue.run_glue(config(place, task_name="cola", allow_random_weights=True), seed=1)[0]
    assert random_start.history != runs[0].history


def test_every_example_once_an_epoch():
    for epochs in (1, 3):
        order = np.concatenate(list(glue.batches(10, 4, epochs, seed=0)))
        assert sorted(order.tolist()) == sorted(list(range(10)) * epochs)


def test_pairs_are_tokenised_as_transformers_does(place):
    tokenizer = AutoTokenizer.from_pretrained(place / "model" / "tokenizer")
    data = load_task(TASKS["mrpc"], str(place / "data"), tokenizer, 12)
    found = [json.loads(line) for line in (place / "data" / "mrpc" / "train.jsonl").read_text().splitlines()]
    expected = tokenizer(
        [r["sentence1"] for r in found], [r["sentence2"] for r in found], truncation=True, max_length=12
    )["input_ids"]
    assert [ids.tolist() for ids in data["train"].ids] == expected
    assert max(map(len, expected)) == 12


def test_metrics_of_known_predictions():
    labels, predictions = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    assert metrics(TASKS["mrpc"], predictions, labels) == {"accuracy": 0.75, "f1": pytest.approx(2 / 3)}
    assert metrics(TASKS["cola"], predictions, labels)["matthews_correlation"] == pytest.approx(1 / np.sqrt(3))
    ramp = np.array([1.0, 2.0, 3.0])
    assert metrics(TASKS["stsb"], ramp**2, ramp)["spearmanr"] == pytest.approx(1)
    assert metrics(TASKS["stsb"], np.ones(3), ramp) == {"pearson": 0.0, "spearmanr": 0.0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence": "a", "label": -1}, r"train.jsonl: row 1: label -1 is not 0 to 1, as cola has it"),
        ({"sentence": "a"}, r"train.jsonl:1: has no 'label'"),
        ({"sentence": "a", "label": 0.5}, r"train.jsonl:1: label is 0.5, a float"),
    ],
)
def test_bad_examples_are_named_before_any_training(place, tmp_path, row, message, monkeypatch):
    monkeypatch.setattr(glue, "fine_tune", lambda *_: pytest.fail("trained"))
    write_jsonl(tmp_path / "cola" / "train.jsonl", [row])
    with pytest.raises(PipelineError, match=message):
        glue.run_glue(config(place, task_name="cola", dataset_path=str(tmp_path)), seed=1)


def test_a_training_that_diverges_is_an_error(place):
    with pytest.raises(PipelineError, match=r"glue sst2: the loss is nan at step"):
        glue.run_glue(
            config(place, task_name="sst2", optimizer=OptimizerConfig(lr=1e30), trainer=replace(TRAINER, eval_steps=3)),
            1,
        )


def test_a_metric_that_is_never_defined_is_an_error(place, tmp_path):
    shutil.copytree(place / "data" / "stsb", tmp_path / "stsb")
    file = tmp_path / "stsb" / "validation.jsonl"
    write_jsonl(file, [json.loads(line) | {"label": 2.5} for line in file.read_text().splitlines()])
    with pytest.raises(PipelineError, match=r"glue stsb: score is nan at every validation, .*labels that differ"):
        glue.run_glue(config(place, dataset_path=str(tmp_path), task_name="stsb"), seed=1)


def test_contradictions_are_refused():
    problems = []
    parse(GlueConfig, {"task_name": "rte", "transfer_from_task": "rte"}, "glue", problems)
    parse(GlueConfig, {"task_name": "rte", "trainer": {"metric_for_best_model": "f1"}}, "glue", problems)
    parse(GlueConfig, {"task_name": ["rte", "foo"]}, "glue", problems)
    transfer = {"task_name": "stsb", "transfer_from_task": "mnli", "trainer": {"metric_for_best_model": "pearson"}}
    parse(GlueConfig, transfer, "glue", problems)
    assert len(problems) == 4
    assert "is the only task of task_name" in problems[0]
    assert "glue.trainer.metric_for_best_model: 'f1' is not a metric of rte (accuracy)" in problems[1]
    assert "glue.trainer.metric_for_best_model: 'pearson' is not a metric of mnli (accuracy)" in problems[3]


def test_stage_writes_its_reports(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = {
        "task_name": "wnli",
        "dataset_path": str(place / "data"),
        "pretrained_model_path": str(place / "model"),
        "trainer": {"num_train_epochs": 1},
    }
    with open("params.yaml", "w") as handle:
        YAML().dump({"seed": 1, "glue": section}, handle)
    stage.main()
    assert set(json.loads((tmp_path / "reports/glue/metrics.json").read_text())) == {"wnli", "average"}
    assert (tmp_path / "reports/glue/history.csv").read_text().startswith("task,seed,accuracy,loss,score,step")
