"""Trap 9's part of the model: what is written is what is read, and nothing else is accepted."""

import dataclasses

import pytest
import torch

from neobert.errors import PipelineError
from neobert.model.embedding import EmbeddingModel
from neobert.model.storage import (
    EmbeddingInfo,
    ModelInfo,
    load_embedding_model,
    load_model,
    load_weights,
    save_model,
)

from .builders import PAD, VARIANTS, VOCAB, batch, config, masked_lm


def info(cfg, embedding=None) -> ModelInfo:
    return ModelInfo(cfg, VOCAB, PAD, 2, 3, 4, 1, 64, "0" * 64, embedding)


@pytest.fixture
def tokenizer_dir(tmp_path):
    directory = tmp_path / "tokenizer_source"
    directory.mkdir()
    (directory / "tokenizer.json").write_text("{}")
    return directory


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_comes_back_bit_for_bit(variant, tmp_path, tokenizer_dir):
    model = masked_lm(**VARIANTS[variant])
    described = info(model.config, EmbeddingInfo("cls", False, {"query": "q: "}, False))
    save_model(tmp_path / "m", model.state_dict(), described, tokenizer_dir)
    loaded, again, extra = load_model(tmp_path / "m")
    assert again == described
    assert extra == {}
    assert (tmp_path / "m/tokenizer/tokenizer.json").is_file()
    assert torch.equal(loaded(*batch([9, 14])), model(*batch([9, 14])))


def test_token_weights_travel_with_the_model(tmp_path, tokenizer_dir):
    model = masked_lm()
    embedding = EmbeddingModel(model.encoder, "mean", True, token_weights=True)
    embedding.set_token_weights(torch.rand(VOCAB) + 0.5)
    described = info(model.config, EmbeddingInfo(token_weights=True))
    save_model(tmp_path / "m", {**model.state_dict(), **embedding.extra_state()}, described, tokenizer_dir)
    loaded, _ = load_embedding_model(tmp_path / "m")
    assert torch.equal(loaded(batch([9, 14]), 2), embedding.eval()(batch([9, 14]), 2))


def test_every_mismatch_is_listed():
    model = masked_lm()
    state = dict(model.state_dict())
    state["encoder.norm.weight"] = torch.ones(33)
    state["encoder.layers.0.mlp.w1.weight"] = state["encoder.layers.0.mlp.w1.weight"].bfloat16()
    del state["encoder.layers.1.mlp.w3.weight"]
    state["surprise"] = torch.ones(1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PipelineError) as error:
        load_weights(model, state)
    for words in ("4 tensor", "missing encoder.layers.1.mlp.w3", "unexpected surprise", r"shape (33,)", "bfloat16"):
        assert words in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_saving_an_incomplete_state_fails_and_writes_nothing(tmp_path, tokenizer_dir):
    state = dict(masked_lm().state_dict())
    del state["encoder.norm.weight"]
    with pytest.raises(PipelineError, match=r"missing encoder\.norm\.weight"):
        save_model(tmp_path / "m", state, info(config()), tokenizer_dir)
    assert not (tmp_path / "m").exists()


def test_a_directory_that_is_no_model_says_so(tmp_path, tokenizer_dir):
    with pytest.raises(PipelineError, match="not a model directory"):
        load_model(tmp_path)
    model = masked_lm()
    save_model(tmp_path / "m", model.state_dict(), info(model.config), tokenizer_dir)
    with pytest.raises(PipelineError, match="says nothing of embeddings"):
        load_embedding_model(tmp_path / "m")
    wider = dataclasses.replace(info(model.config), vocab_size=256)
    with pytest.raises(PipelineError, match="shape"):
        save_model(tmp_path / "m2", model.state_dict(), wider, tokenizer_dir)
