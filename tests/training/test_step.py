"""Trap 5: one optimizer step does not depend on how its batch is split; and what an unsound step leaves behind."""

import json
from typing import get_args, get_type_hints

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from neobert.config.optimizer import OptimizerConfig
from neobert.config.runtime import DistributedConfig
from neobert.config.trainer import TrainerConfig
from neobert.errors import PipelineError
from neobert.training.distributed import Workers
from neobert.training.optimizer import build_optimizer, parameter_groups
from neobert.training.reports import write_reports
from neobert.training.step import TrainStep
from neobert.training.timing import Timing
from neobert.training.trainer import accumulation_steps
from tests.training import tiny
from tests.training.poison import Poisonable, Poisoned


@pytest.mark.parametrize("size", [1, 2, 8])
def test_uneven_micro_batches_train_like_one_batch(tmp_path, size):
    source = tiny.source()
    counts = {b["count"] for b in source.micro_batches(0, 8, 4, 0, 1)}
    assert len(counts) > 1, "the micro-batches must have unequal counts for this test to say anything"
    whole = tiny.run(tmp_path / "whole", {"per_device_train_batch_size": 4, "max_steps": 6})
    split = tiny.run(tmp_path / "split", {"per_device_train_batch_size": size, "max_steps": 6})
    for a, b in zip(whole.history, split.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    for key, value in whole.state_dict.items():
        torch.testing.assert_close(value, split.state_dict[key], atol=5e-5, rtol=1e-4)


def test_gradient_is_that_of_the_mean_over_all_terms(tmp_path):
    """One step of SGD-like reading: the first grad_norm is the norm of d(sum / count) over the global batch."""
    objective, source = tiny.objective(), tiny.source()
    batches = source.micro_batches(0, 8, 2, 0, 1)
    total = sum(objective(b)[0] for b in batches) / sum(b["count"] for b in batches)
    total.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in objective.parameters() if p.grad is not None])
    result = tiny.run(tmp_path, {"per_device_train_batch_size": 2, "max_steps": 1})
    assert result.history[0]["loss"] == pytest.approx(total.item(), rel=1e-6)
    assert result.history[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_norms_biases_and_embeddings_are_not_decayed():
    objective = tiny.objective(rms_norm=False, tie_word_embeddings=False, rope=False)
    groups = parameter_groups(objective, 0.1)
    names = {id(p): n for n, p in objective.named_parameters()}
    decayed = {names[id(p)] for p in groups[0]["params"]}
    kept = {names[id(p)] for p in groups[1]["params"]}
    assert groups[0]["weight_decay"] == 0.1
    assert groups[1]["weight_decay"] == 0.0
    assert decayed | kept == set(names.values())
    assert not any("norm" in n or "bias" in n or "embeddings" in n or "positions" in n for n in decayed)
    assert any("mlp" in n for n in decayed)


LOG = {"logging_steps": 1}
FLAT = {"name": "constant"}


@pytest.mark.parametrize("name", get_args(get_type_hints(OptimizerConfig)["name"]))
def test_an_update_reads_nothing_back_from_the_device(name):
    """A fake tensor has no values: reading one, which on a GPU makes the host wait, raises."""
    config, workers = TrainerConfig(**{**tiny.TRAINER, "skip_spikes": True}), Workers(DistributedConfig(), "no")
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective = tiny.objective()
        optimizer = build_optimizer(objective, OptimizerConfig(name=name))
        step = TrainStep(objective, objective, optimizer, workers, config, Timing(workers.device, False), lambda: None)
        for parameter in step.parameters:
            parameter.grad = torch.zeros_like(parameter)
        step._update(1e-3, 5, {"loss": torch.zeros((), dtype=torch.float64)})


def test_a_non_finite_step_is_skipped_and_counted_and_changes_nothing(tmp_path):
    poisoned = tiny.run(tmp_path / "a", {"max_steps": 3}, LOG, FLAT, objective=Poisonable(), source=Poisoned({2}))
    two = tiny.run(tmp_path / "b", {"max_steps": 2}, LOG, FLAT, objective=Poisonable(), source=Poisoned(set()))
    assert [row["skipped"] for row in poisoned.history] == [0, 0, 1]
    assert tiny.same_state(poisoned.state_dict, two.state_dict)
    assert poisoned.history[:2] == two.history


def test_a_window_of_skipped_steps_alone_has_no_loss(tmp_path, caplog):
    """Nothing was measured in it: a 0 would be the best loss of the run."""
    caplog.set_level("INFO", "neobert")
    options = {"objective": Poisonable(), "source": Poisoned({2, 3, 4})}
    result = tiny.run(tmp_path, {"max_steps": 6}, {"logging_steps": 2, "save_steps": 3}, FLAT, **options)
    assert [row.keys() & {"loss", "grad_norm"} for row in result.history] == [
        {"loss", "grad_norm"},
        set(),
        {"loss", "grad_norm"},
    ]
    assert [row["skipped"] for row in result.history] == [0, 2, 3]
    assert "tiny 4/6: lr 0.01" in caplog.text
    last = tiny.run(tmp_path / "last", {"max_steps": 4}, LOG, FLAT, objective=Poisonable(), source=Poisoned({2, 3}))
    assert last.metrics["loss"] == last.history[1]["loss"] > 0, "the last one that was measured"
    write_reports(tmp_path / "reports", last, "tiny")
    rows = (tmp_path / "reports" / "history.csv").read_text().splitlines()
    assert dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))["loss"] == ""


def test_real_tokens_are_counted_where_a_step_counts(tmp_path):
    result = tiny.run(tmp_path, {"max_steps": 3}, LOG, FLAT, objective=Poisonable(), source=Poisoned({1}))
    steps = [tiny.source().micro_batches(8 * step, 8, 4, 0, 1) for step in range(3)]
    first, _, last = (sum(batch["tokens"] for batch in batches) for batches in steps)
    assert [row["tokens"] for row in result.history] == [first, first, first + last]
    assert result.metrics["tokens"] == first + last


def test_adam_takes_no_notice_of_a_skipped_step(tmp_path):
    result = tiny.run(tmp_path, {"max_steps": 3}, LOG, FLAT, objective=Poisonable(), source=Poisoned({1}))
    stored = tiny.tensors(tmp_path / "checkpoints" / "3")
    assert {v.item() for k, v in stored.items() if k.endswith(".step")} == {2.0}
    assert result.metrics["skipped"] == 1


def test_too_many_in_a_row_stop_the_run_with_the_batch_dumped(tmp_path):
    with pytest.raises(PipelineError, match=r"3 steps in a row.*last batch is in"):
        tiny.run(
            tmp_path,
            {"max_skipped_steps": 3},
            objective=Poisonable(),
            source=Poisoned(set(range(5, 12))),
        )
    (dump,) = tmp_path.glob("skipped-step-7-rank-0.pt")
    assert torch.load(dump, weights_only=True)[0]["count"] > 0
    assert (tmp_path / "checkpoints" / "4" / "manifest.json").is_file()
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] <= 8


def test_batch_sizes_that_do_not_divide_are_refused():
    config = TrainerConfig(global_batch_size=8, per_device_train_batch_size=4)
    assert accumulation_steps(config, 1) == 2
    with pytest.raises(PipelineError, match=r"trainer.global_batch_size \(8\).*4 x 3 = 12"):
        accumulation_steps(config, 3)
    with pytest.raises(PipelineError, match="disagrees"):
        accumulation_steps(
            TrainerConfig(global_batch_size=8, per_device_train_batch_size=4, gradient_accumulation_steps=1), 1
        )
