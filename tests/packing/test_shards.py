"""Packed files open in other tools, and are refused when anything about them changed."""

import json
import os

import datasets
import numpy as np
import polars
import pytest

from neobert.config.packing import PackingConfig
from neobert.errors import PipelineError
from neobert.jobs import Engine
from neobert.packing.shards import PackedDataset
from neobert.packing.stage import pack


@pytest.fixture
def packed(tokens, tmp_path):
    pack(tokens, tmp_path / "packed", PackingConfig(max_length=64), 1, tmp_path / "cache", Engine(workers=1))
    return tmp_path / "packed" / "train"


def test_datasets_and_polars_open_the_files(packed):
    data = PackedDataset(packed)
    first = datasets.Dataset.from_file(str(packed / "shard-00000.arrow"))
    assert set(first.column_names) == {"input_ids", "seq_lengths"}
    frame = polars.read_ipc_stream(packed / "shard-00000.arrow")
    assert len(first) == frame.height == data.manifest["files"]["shard-00000.arrow"]["rows"]
    for index in (0, len(first) - 1):
        ids, lengths = data.row(index)
        assert first[index] == {"input_ids": ids.tolist(), "seq_lengths": lengths.tolist()}
        assert frame["input_ids"][index].to_list() == ids.tolist()
        assert frame["seq_lengths"][index].to_list() == lengths.tolist()


def flip(path):
    os.chmod(path, 0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # not through the hard link into the cache
    path.write_bytes(data)


def test_changed_bytes_are_refused_and_sums_are_taken_once(packed, tmp_path, monkeypatch):
    sums = []
    from neobert.packing import shards

    def counted(path):
        sums.append(path)
        return original(path)

    original = shards.sha256_file
    monkeypatch.setattr(shards, "sha256_file", counted)
    verified = tmp_path / "verified"
    PackedDataset(packed, verified)
    assert len(sums) == 2
    PackedDataset(packed, verified)
    assert len(sums) == 2, "remembered"
    flip(packed / "shard-00001.arrow")
    with pytest.raises(PipelineError, match=r"shard-00001\.arrow: its sha256 differs"):
        PackedDataset(packed, verified)


def test_missing_and_truncated_files_are_refused(packed):
    path = packed / "shard-00000.arrow"
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(PipelineError, match="missing"):
        PackedDataset(packed)
    path.write_bytes(data[:-100])
    with pytest.raises(PipelineError, match=r"has .* bytes where"):
        PackedDataset(packed)
    (packed / "manifest.json").unlink()
    with pytest.raises(PipelineError, match="never finished"):
        PackedDataset(packed)


def test_dimensions_must_agree_with_the_manifest(packed):
    path = packed / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["max_length"] = 32
    path.write_text(json.dumps(manifest))
    with pytest.raises(PipelineError, match=r"rows of 64 tokens where the manifest says .* of 32"):
        PackedDataset(packed)


def test_rows_cross_shards(packed):
    data = PackedDataset(packed)
    first = data.manifest["files"]["shard-00000.arrow"]["rows"]
    frame = polars.read_ipc_stream(packed / "shard-00001.arrow")
    assert data.row(first)[0].tolist() == frame["input_ids"][0].to_list()
    ids, _ = data.take(np.arange(first - 1, first + 1))
    assert ids[1].tolist() == frame["input_ids"][0].to_list()
    assert data.sources == {"one": [(0, first), (first, data.rows)]}
