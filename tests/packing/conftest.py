"""Token shards made by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from neobert.io import sha256_file, write_json

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def write_tokens(directory: Path, shards: dict[str, list[list[int]]], vocab_size: int = 1000, sources=None) -> Path:
    """``data/tokens`` with the given documents a shard (``train/part-00000.arrow`` -> documents)."""
    kind = pa.uint16() if vocab_size <= 1 << 16 else pa.int32()
    files = {}
    for name, documents in shards.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = pa.schema([("input_ids", pa.list_(kind))])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for start in range(0, len(documents), 7):  # several batches, as the tokenizer's stage writes them
                writer.write_batch(
                    pa.record_batch([pa.array(documents[start : start + 7], kind_list(kind))], schema=schema)
                )
        files[name] = {
            "documents": len(documents),
            "tokens": sum(map(len, documents)),
            "source": (sources or {}).get(name, "one"),
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
    tokenizer = {"vocab_size": vocab_size, "sha256": "0" * 64, **{f"{k}_token_id": v for k, v in SPECIAL.items()}}
    names = sorted({entry["source"] for entry in files.values()})
    write_json(directory / "manifest.json", {"tokenizer": tokenizer, "sources": names, "files": files})
    return directory


def kind_list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind)


def random_documents(count: int, seed: int, vocab_size: int = 1000, longest: int = 300) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(3.5, 1.0, count).astype(int), 1, longest)
    return [generator.integers(5, vocab_size, length).tolist() for length in lengths]


@pytest.fixture
def tokens(tmp_path) -> Path:
    """Two train shards and one of validation."""
    return write_tokens(
        tmp_path / "tokens",
        {
            "train/part-00000.arrow": random_documents(300, 0),
            "train/part-00001.arrow": random_documents(200, 1),
            "validation/part-00000.arrow": random_documents(20, 2),
        },
    )
