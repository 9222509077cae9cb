"""Pseudo-perplexity equals a token-by-token reference, whatever the batches; documents are drawn from every length."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from transformers import AutoTokenizer

from neobert.config.pseudo_perplexity import PseudoPerplexityConfig
from neobert.errors import PipelineError
from neobert.evaluation.pseudo_perplexity import choose, class_of, measure, perplexity, read_texts, score
from neobert.model.batch import flatten
from neobert.model.storage import load_model
from stages import pseudo_perplexity as stage
from tests.evaluation.conftest import make_model, sentences
from tests.evaluation.test_export_hop import write_export


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("pppl")
    make_model(root / "model", None)
    (root / "shards").mkdir()
    texts = [*sentences(30, seed=1), "", "  "]
    pl.DataFrame({"id": [str(i) for i in range(len(texts))], "text": texts}).write_parquet(
        root / "shards" / "part-0.parquet"
    )
    return root


def reference(model, info, ids):
    """One document, one token at a time, full softmax over every position."""
    total = 0.0
    for position in range(1, len(ids) - 1):
        masked = ids.copy()
        masked[position] = info.mask_token_id
        with torch.no_grad():
            logits = model(*flatten([masked], info.pad_token_id))
        total += float(logits[position].double().log_softmax(-1)[ids[position]])
    return total


@pytest.mark.parametrize("tokens_per_batch", [8, 100, 4096])
def test_equals_one_token_at_a_time(place, tokens_per_batch):
    model, info, _ = load_model(place / "model")
    tokenizer = AutoTokenizer.from_pretrained(place / "model" / "tokenizer")
    texts = ["the cat running", "x", "dogs jumped the red cat", "[MASK] the"]
    documents = [np.array(ids) for ids in tokenizer(texts)["input_ids"]]
    found = score(model.eval(), info, documents, tokens_per_batch, torch.float32)
    expected = [reference(model, info, ids) for ids in documents]
    assert [s.log_probability for s in found] == pytest.approx(expected, abs=1e-4)
    assert [s.tokens for s in found] == [len(ids) - 2 for ids in documents]
    tokens = sum(len(ids) - 2 for ids in documents)
    assert perplexity(found) == pytest.approx(math.exp(-sum(expected) / tokens), rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=80), st.integers(1, 60), st.integers(0, 5))
def test_documents_come_evenly_from_each_class_of_lengths(lengths, count, seed):
    lengths, bins = np.array(lengths), [10, 40]
    chosen = choose(lengths, bins, count, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, len(lengths))
    classes = class_of(lengths, bins)
    have = np.bincount(classes, minlength=3)
    took = np.bincount(classes[chosen], minlength=3)
    for i in range(3):
        for j in range(3):  # a class gets fewer than another only where it has no more, or by rounding
            assert took[i] >= took[j] - 1 or took[i] == have[i]


def test_report_by_length(place):
    config = PseudoPerplexityConfig(
        pretrained_model_path=str(place / "model"),
        dataset_path=str(place / "shards"),
        num_documents=10,
        length_bins=[8, 20],
    )
    found = measure(config, seed=1)
    assert found == measure(config, seed=1)
    assert found["documents"] == 10
    assert list(found["by_length"]) == ["1-8", "9-20", "over-20"]
    assert sum(part["tokens"] for part in found["by_length"].values()) == found["tokens"]
    parts = [(p["tokens"], math.log(p["pseudo_perplexity"])) for p in found["by_length"].values()]
    whole = sum(n * nll for n, nll in parts) / found["tokens"]
    assert math.log(found["pseudo_perplexity"]) == pytest.approx(whole, abs=1e-4)


def test_sources_and_their_errors(place, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert read_texts(tmp_path / "a.jsonl", "body", 9) == read_texts(tmp_path / "a.txt", "text", 9) == ["one", "two"]
    (tmp_path / "a.txt").write_bytes("one\fpage two\u2028line\r\nthree\n".encode())
    assert read_texts(tmp_path / "a.txt", "text", 9) == ["one\fpage two\u2028line", "three"]
    with pytest.raises(PipelineError, match=r"has no column 'body'; its columns are id, text"):
        read_texts(place / "shards", "body", 9)
    with pytest.raises(PipelineError, match="is no Parquet directory and no file"):
        read_texts(tmp_path / "gone", "text", 9)
    (tmp_path / "a.txt").write_text("\n\n")
    with pytest.raises(PipelineError, match="holds no document"):
        read_texts(tmp_path / "a.txt", "text", 9)
    config = PseudoPerplexityConfig(pretrained_model_path=str(place / "model"), max_length=500)
    with pytest.raises(PipelineError, match="max_length: 500 is more than the model's 48"):
        measure(config, 1)


def test_a_hugging_face_directory_is_measured_alike(place, tmp_path):
    write_export(place / "model", tmp_path / "export", format="neobert")
    config = PseudoPerplexityConfig(str(place / "model"), str(place / "shards"), num_documents=4)
    exported = PseudoPerplexityConfig(str(tmp_path / "export"), str(place / "shards"), num_documents=4, max_length=48)
    assert measure(exported, 1) == measure(config, 1)


def test_stage_writes_metrics(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = {"pretrained_model_path": str(place / "model"), "dataset_path": str(place / "shards"), "num_documents": 4}
    with open("params.yaml", "w") as handle:
        YAML().dump({"seed": 1, "pseudo_perplexity": section}, handle)
    stage.main()
    assert json.loads((tmp_path / "reports/pseudo_perplexity/metrics.json").read_text())["documents"] == 4
