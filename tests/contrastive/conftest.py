"""A tiny world for contrastive tests: a tokenizer, pairs with something to learn, a pretrained model directory."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from neobert.config.contrastive_data import ContrastiveDataConfig, PairSource
from neobert.config.model import ModelConfig
from neobert.contrastive.preprocess import preprocess
from neobert.io import sha256_file, write_manifest
from neobert.model.heads import MaskedLM
from neobert.model.storage import ModelInfo, save_model

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer(directory: Path) -> Path:
    words = [*SPECIALS, "q", ":", *[f"w{i}" for i in range(100)]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    roles = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], SPECIALS, strict=True))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(roles | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64})
    )
    return directory


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    return make_tokenizer(tmp_path / "tokenizer")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with tokenizer/, pairs/ (300 of them in two sources, ragged negatives) and model/."""
    root = tmp_path_factory.mktemp("contrastive")
    make_tokenizer(root / "tokenizer")
    rng = np.random.default_rng(0)

    def words(numbers: np.ndarray) -> str:
        return " ".join(f"w{n}" for n in numbers)

    def rows(count: int, negatives: int) -> list[dict]:
        found = []
        for _ in range(count):
            topic = rng.choice(50, 3, replace=False)
            # A query's word n is its document's word n + 50: no overlap of words, only something to learn.
            document = np.concatenate([topic + 50, rng.integers(0, 100, rng.integers(1, 8))])
            row = {"query": words(rng.permutation(topic)), "corpus": words(rng.permutation(document))}
            row["negative"] = [words(rng.integers(0, 100, 4)) for _ in range(rng.integers(0, negatives + 1))]
            found.append(row)
        return found

    for name, count, negatives in (("big", 240, 2), ("small", 60, 0)):
        lines = [json.dumps(row) for row in rows(count, negatives)]
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    sources = {
        "big": PairSource(path=str(root / "big.jsonl"), negative="negative", label="query"),
        "small": PairSource(path=str(root / "small.jsonl"), label="query"),
    }
    config = ContrastiveDataConfig(
        sources=sources, decontaminate=[], validation_fraction=0.1, max_query_length=16, max_document_length=16
    )
    preprocess(config, root / "tokenizer", root / "pairs", root / "cache")
    save_pretrained(root / "model", root / "tokenizer")
    save_tokens(root / "tokens", root / "tokenizer")
    return root


def save_tokens(directory: Path, tokenizer: Path) -> None:
    """Pretraining text as the tokenize stage writes it: 50 documents in two shards."""
    rng = np.random.default_rng(1)
    for part in range(2):
        documents = [rng.integers(7, 107, rng.integers(3, 30)).tolist() for _ in range(25)]
        batch = pa.record_batch({"input_ids": pa.array(documents, pa.list_(pa.uint16()))})
        path = directory / "train" / f"part-{part:05d}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
    write_manifest(directory, {"tokenizer": {"sha256": sha256_file(tokenizer / "tokenizer.json")}})


def save_pretrained(directory: Path, tokenizer: Path, seed: int = 0) -> None:
    config = ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = dataclasses.replace(config, max_position_embeddings=64, attn_backend="sdpa")
    torch.manual_seed(seed)
    info = ModelInfo(config, 128, 0, 2, 3, 4, 1, 64, sha256_file(tokenizer / "tokenizer.json"))
    save_model(directory, MaskedLM(config, 128, 0).state_dict(), info, tokenizer)
