"""Data smaller than one batch is refused; a split without rows is not evaluated on."""

import dataclasses

import pytest

from neobert.config.dataset import DatasetConfig
from neobert.config.packing import PackingConfig
from neobert.errors import PipelineError
from neobert.jobs import Engine
from neobert.packing.shards import PackedDataset
from neobert.packing.stage import pack
from neobert.training.phase import Phase, check_size
from tests.packing.conftest import random_documents, write_tokens


@pytest.fixture
def packed(tmp_path):
    tokens = write_tokens(tmp_path / "tokens", {"train/part-00000.arrow": random_documents(40, 0)})
    pack(tokens, tmp_path / "packed", PackingConfig(max_length=64), 1, tmp_path / "cache", Engine(workers=1))
    return tmp_path / "packed"


def test_fewer_rows_than_a_batch_are_refused(packed):
    data = PackedDataset(packed / "train")
    check_size("pretrain", data, data.rows, data.rows)
    with pytest.raises(PipelineError, match=r"fewer than trainer\.global_batch_size \(1000\); add text, or lower it"):
        check_size("pretrain", data, data.rows, 1000)


def test_an_empty_validation_split_is_passed_over(packed):
    fields = {field.name: None for field in dataclasses.fields(Phase)}
    phase = Phase(**{**fields, "stage": "pretrain", "packed": packed, "dataset": DatasetConfig()})
    assert phase._held_out(PackedDataset(packed / "train")) == (None, 0)
