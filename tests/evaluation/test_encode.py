"""The encoder equals one text at a time, in any order, batch size and block size; bad input is refused."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from neobert.errors import PipelineError
from neobert.evaluation import encode
from neobert.evaluation.encode import TextEncoder, batch_bounds
from neobert.model.storage import load_embedding_model
from tests.evaluation.conftest import sentences


def encoder(model_dir, **options):
    embedder, info = load_embedding_model(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir / "tokenizer")
    return TextEncoder(embedder, tokenizer, max_length=info.max_length, **options)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 100))
def test_batches_are_within_budget_and_as_full_as_they_can_be(lengths, budget):
    lengths = np.array(lengths, dtype=np.int64)
    bounds = batch_bounds(lengths, budget)
    assert bounds[0] == 0
    assert bounds[-1] == len(lengths)
    for start, stop in itertools.pairwise(bounds):
        assert stop > start
        assert stop == start + 1 or lengths[start:stop].sum() <= budget
        assert stop == len(lengths) or lengths[start : stop + 1].sum() > budget


def test_order_and_values_equal_one_text_at_a_time(model_dir, monkeypatch):
    texts = sentences(57)
    whole = encoder(model_dir, tokens_per_batch=200)
    expected = np.concatenate([whole.encode([text]) for text in texts])
    np.testing.assert_allclose(whole.encode(texts), expected, atol=2e-6)
    monkeypatch.setattr(encode, "BLOCK", 8)
    monkeypatch.setattr(encode, "HELD", 20)
    np.testing.assert_allclose(whole.encode(texts), expected, atol=2e-6)
    shuffled = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_allclose(whole.encode([texts[i] for i in shuffled]), expected[shuffled], atol=2e-6)
    assert np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)


def test_tokens_equal_transformers_call(model_dir):
    texts = [*sentences(40), "", " ", "[SEP] [MASK]", "x" * 500, "\x00\x07 control"]
    ours = encoder(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir / "tokenizer")
    expected = tokenizer(texts, truncation=True, max_length=48)["input_ids"]
    assert [row.tolist() for row in ours.tokenize(texts)] == expected
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 48  # set by the call above, not by ours


def test_prompt_is_text_before_the_text(model_dir):
    ours = encoder(model_dir)
    np.testing.assert_array_equal(ours.encode(["dog"], "the red "), ours.encode(["the red dog"]))


def test_empty_input_and_wrong_types(model_dir):
    ours = encoder(model_dir)
    assert ours.encode([]).shape == (0, 32)
    assert np.isfinite(ours.encode(["", "  "])).all()
    with pytest.raises(PipelineError, match="text 1 is NoneType, expected a string"):
        ours.encode(["a", None])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_a_gpu_gives_the_cpus_embeddings(model_dir, dtype, tolerance):
    texts = sentences(300)
    found = encoder(model_dir, device="cuda", dtype=dtype, tokens_per_batch=500).encode(texts)
    np.testing.assert_allclose(found, encoder(model_dir).encode(texts), atol=tolerance)


def test_weights_and_mode_are_inference(model_dir):
    ours = encoder(model_dir, dtype=torch.bfloat16)
    result = ours.encode(sentences(5))
    assert result.dtype == np.float32
    assert not ours.embedder.training
    full = encoder(model_dir).encode(sentences(5))
    assert np.abs(result - full).max() < 0.1
