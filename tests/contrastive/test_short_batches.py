"""Batches with fewer pairs than trainer.global_batch_size: what is counted of them, and where it stands."""

import dataclasses
import json

import pytest

from neobert.config.contrastive import ContrastiveTrainerConfig
from neobert.contrastive.batching import Schedule
from neobert.contrastive.pairs import Pairs

from .test_finetune import config, run


def test_what_short_batches_hold_stands_beside_the_speed(world, tmp_path):
    """`samples` and `epoch` are the position, at full batches; `terms_per_step` is what a step really had."""
    trainer = ContrastiveTrainerConfig(global_batch_size=256, num_train_epochs=4.0)
    done = run(world, tmp_path, dataclasses.replace(config(warmup=False), trainer=trainer))
    pairs = Pairs(world / "pairs", "train")
    schedule = Schedule(pairs, 256, {}, 0.5, 1)
    sizes = [len(schedule.batch(step)[1]) for step in range(trainer.steps(pairs.rows))]
    assert len(sizes) == 4
    assert sum(sizes) < 4 * 256
    rows = [row for row in done.result.history if "loss" in row]
    assert [(row["samples"], row["epoch"]) for row in rows] == [(n, n / pairs.rows) for n in (512, 1024)]
    speed = [json.loads(line) for line in (tmp_path / "throughput.jsonl").read_text().splitlines()]
    assert [row["terms_per_step"] for row in speed] == pytest.approx([sum(sizes[:2]) / 2, sum(sizes[2:]) / 2])
