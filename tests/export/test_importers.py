"""Converters against independent implementations of the layouts they read."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EuroBertConfig, EuroBertForMaskedLM

from neobert.config.export import ExportConfig
from neobert.errors import PipelineError
from neobert.export.export import build_embedder, write_directory
from neobert.model.importers import as_model_directory
from neobert.model.storage import load_model

VOCAB, HIDDEN, HEADS, LAYERS, INNER, LENGTH = 384, 32, 4, 2, 64, 48


class PublishedNeoBERT(nn.Module):
    """The published layout, written from its description: qkv by head, complex RoPE on neighbours, one w12."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.encoder = nn.Embedding(VOCAB, HIDDEN, padding_idx=0)
        self.model.transformer_encoder = nn.ModuleList()
        for _ in range(LAYERS):
            block, block_ffn = nn.Module(), nn.Module()
            block.qkv, block.wo = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False), nn.Linear(HIDDEN, HIDDEN, bias=False)
            block_ffn.w12 = nn.Linear(HIDDEN, 2 * INNER, bias=False)
            block_ffn.w3 = nn.Linear(INNER, HIDDEN, bias=False)
            block.ffn = block_ffn
            block.attention_norm, block.ffn_norm = nn.RMSNorm(HIDDEN, 1e-5), nn.RMSNorm(HIDDEN, 1e-5)
            self.model.transformer_encoder.append(block)
        self.model.layer_norm = nn.RMSNorm(HIDDEN, 1e-5)
        self.decoder = nn.Linear(HIDDEN, VOCAB)

    def forward(self, ids):
        x, length, size = self.model.encoder(ids), ids.shape[1], HIDDEN // HEADS
        angles = torch.outer(torch.arange(length).float(), 1e4 ** (-torch.arange(0, size, 2).float() / size))
        turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]

        def rotated(t):
            pairs = torch.view_as_complex(t.reshape(*t.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * turn).flatten(3)

        for block in self.model.transformer_encoder:
            q, k, v = block.qkv(block.attention_norm(x)).view(*ids.shape, HEADS, 3 * size).chunk(3, -1)
            q, k, v = (t.transpose(1, 2) for t in (rotated(q), rotated(k), v))
            weights = (q @ k.transpose(-1, -2) / size**0.5).softmax(-1)
            x = x + block.wo((weights @ v).transpose(1, 2).flatten(2))
            a, b = block.ffn.w12(block.ffn_norm(x)).chunk(2, -1)
            x = x + block.ffn.w3(F.silu(a) * b)
        return self.decoder(self.model.layer_norm(x))


def shake(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + float(parameter.dim() == 1))
    return model.eval()


def published(directory, tokenizer_dir):
    model = shake(PublishedNeoBERT())
    shutil.copytree(tokenizer_dir, directory)
    shape = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": VOCAB}
    # intermediate_size is stated before or after the 2/3 rule, depending on who exported: the weights decide.
    config = {**shape, "model_type": "neobert", "intermediate_size": 96, "norm_eps": 1e-5, "max_length": LENGTH}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), directory / "model.safetensors")
    return model


def eurobert(directory, tokenizer_dir, **changes):
    config = EuroBertConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=LENGTH,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        mask_token_id=4,
        **{"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, **changes},
    )
    model = shake(EuroBertForMaskedLM(config))
    shutil.copytree(tokenizer_dir, directory)
    model.save_pretrained(directory, max_shard_size="40KB")
    return lambda ids: model(ids).logits


def logits_of(directory, ids):
    model, info, _ = load_model(directory)
    length = ids.shape[1]
    flat = (ids[0], torch.arange(length), torch.tensor([0, length], dtype=torch.int32), length)
    with torch.no_grad():
        return model.eval()(*flat), info


@pytest.fixture
def ids():
    return torch.randint(5, 70, (1, 21), generator=torch.Generator().manual_seed(0))


def test_published_neobert_is_converted_exactly_with_its_decoder(tmp_path, tokenizer_dir, ids):
    theirs = published(tmp_path / "hf", tokenizer_dir)
    directory = as_model_directory(tmp_path / "hf", tmp_path / "scratch", tokenizer_dir)
    found, info = logits_of(directory, ids)
    with torch.no_grad():
        expected = theirs(ids)[0]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (info.model.decoder_bias, info.model.tie_word_embeddings) == (True, False)
    assert (info.model.mlp_size, info.max_length, info.mask_token_id) == (INNER, LENGTH, 4)


@pytest.mark.parametrize(
    "changes",
    [{"tie_word_embeddings": True}, {"tie_word_embeddings": False, "num_key_value_heads": 2}],
    ids=["tied", "untied, grouped keys"],
)
def test_native_eurobert_is_converted_exactly(tmp_path, tokenizer_dir, ids, changes):
    theirs = eurobert(tmp_path / "hf", tokenizer_dir, **changes)
    directory = as_model_directory(tmp_path / "hf", tmp_path / "scratch", tokenizer_dir)
    found, info = logits_of(directory, ids)
    with torch.no_grad():
        expected = theirs(ids)[0]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert info.model.rope_theta == 5000.0


@pytest.mark.parametrize("layout", ["native", "neobert"])
def test_our_exports_come_back_bit_for_bit(make_model_dir, tmp_path, tokenizer_dir, layout):
    source = make_model_dir(**({} if layout == "native" else {"rope": False, "hidden_act": "gelu"}))
    model, info, extra = load_model(source)
    (tmp_path / "hf").mkdir()
    embedder = build_embedder(model, info, extra)
    write_directory(tmp_path / "hf", source, model, embedder, info, ExportConfig(), layout)
    directory = as_model_directory(tmp_path / "hf", tmp_path / "scratch", tokenizer_dir)
    before, after = load_file(source / "model.safetensors"), load_file(directory / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_directory_of_ours_is_used_as_it_is(make_model_dir, tmp_path, tokenizer_dir):
    source = make_model_dir()
    assert as_model_directory(source, tmp_path / "scratch", tokenizer_dir) == source


def test_what_cannot_be_converted_says_why(tmp_path, tokenizer_dir):
    with pytest.raises(PipelineError, match="no model directory"):
        as_model_directory(tmp_path, tmp_path / "scratch", tokenizer_dir)
    eurobert(tmp_path / "biased", tokenizer_dir, mlp_bias=True)
    with pytest.raises(PipelineError, match="has mlp_bias"):
        as_model_directory(tmp_path / "biased", tmp_path / "scratch", tokenizer_dir)
    published(tmp_path / "pickled", tokenizer_dir)
    (tmp_path / "pickled/model.safetensors").rename(tmp_path / "pickled/pytorch_model.bin")
    with pytest.raises(PipelineError, match="pickled"):
        as_model_directory(tmp_path / "pickled", tmp_path / "scratch", tokenizer_dir)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(PipelineError, match="'bert' model"):
        as_model_directory(tmp_path / "bert", tmp_path / "scratch", tokenizer_dir)


def test_another_vocabulary_is_refused(tmp_path, tokenizer_dir):
    published(tmp_path / "hf", tokenizer_dir)
    other = tmp_path / "other"
    shutil.copytree(tokenizer_dir, other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"quick"', '"quack"'))
    with pytest.raises(PipelineError, match="another vocabulary"):
        as_model_directory(tmp_path / "hf", tmp_path / "scratch", other)
