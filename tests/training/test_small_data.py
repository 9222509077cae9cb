"""What a phase makes of its data: too little is refused, an empty split passed over, held-out rows masked alike.

Its gate's products are the run's first, so kernels are chosen before them.
"""

import dataclasses
import os
from types import SimpleNamespace

import pytest
import torch

from neobert.config.datacollator import DataCollatorConfig
from neobert.config.dataset import DatasetConfig
from neobert.config.packing import PackingConfig
from neobert.config.trainer import TrainerConfig
from neobert.errors import PipelineError
from neobert.jobs import Engine
from neobert.packing.shards import PackedDataset
from neobert.packing.stage import pack
from neobert.training import phase as phases
from neobert.training.phase import Phase, check_size
from tests.packing.conftest import random_documents, write_tokens
from tests.training import tiny


@pytest.fixture
def packed(tmp_path):
    tokens = write_tokens(tmp_path / "tokens", {"train/part-00000.arrow": random_documents(40, 0)})
    pack(tokens, tmp_path / "packed", PackingConfig(max_length=64), 1, tmp_path / "cache", Engine(workers=1))
    return tmp_path / "packed"


def held_out_inputs(packed, monkeypatch, **collator):
    """What a phase with these ablations sees when it is evaluated."""
    ids = {f"{role}_token_id": index for index, role in enumerate(("pad", "unk", "cls", "sep", "mask"))}
    tokenizer = SimpleNamespace(**ids, vocab_size=PackedDataset(packed / "train").vocab_size)
    monkeypatch.setattr(phases, "open_tokenizer", lambda path: (None, tokenizer))
    monkeypatch.setattr(phases, "evaluator", lambda source, groups, size: source.fixed(groups[""], size))
    fields = {field.name: None for field in dataclasses.fields(Phase)}
    known = {"stage": "pretrain", "packed": packed, "seed": 3, "dataset": DatasetConfig(eval_split="train")}
    settings = {"trainer": TrainerConfig(global_batch_size=8), "collator": DataCollatorConfig(**collator)}
    _, batch = Phase(**{**fields, **known, **settings})._sources(PackedDataset(packed / "train"))
    return batch


@pytest.mark.parametrize("ablation", ["mask_all", "join_segments"])
def test_an_ablation_is_evaluated_on_the_same_inputs(packed, monkeypatch, ablation):
    default = held_out_inputs(packed, monkeypatch)
    changed = held_out_inputs(packed, monkeypatch, **{ablation: True})
    assert default.keys() == changed.keys()
    assert all(torch.equal(torch.as_tensor(default[key]), torch.as_tensor(changed[key])) for key in default)


def test_fewer_rows_than_a_batch_are_refused(packed):
    data = PackedDataset(packed / "train")
    check_size("pretrain", data, data.rows, data.rows)
    with pytest.raises(PipelineError, match=r"fewer than trainer\.global_batch_size \(1000\); add text, or lower it"):
        check_size("pretrain", data, data.rows, 1000)


def test_an_empty_validation_split_is_passed_over(packed):
    fields = {field.name: None for field in dataclasses.fields(Phase)}
    phase = Phase(**{**fields, "stage": "pretrain", "packed": packed, "dataset": DatasetConfig()})
    assert phase._held_out(PackedDataset(packed / "train")) == (None, 0)


def test_repeatable_kernels_are_chosen_before_the_gate(monkeypatch):
    """cuBLAS reads its setting when it starts, and torch refuses its products without it."""
    seen = []

    def gate(encoder, batch):
        seen.append((os.environ.get("CUBLAS_WORKSPACE_CONFIG"), torch.are_deterministic_algorithms_enabled()))

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(phases, "packing_gate", gate)
    trainer = TrainerConfig(global_batch_size=8, per_device_train_batch_size=4, deterministic=True)
    fields = {field.name: None for field in dataclasses.fields(Phase)}
    Phase(**{**fields, "trainer": trainer})._gate(tiny.objective().model, tiny.source())
    assert seen == [(":4096:8", True)]
