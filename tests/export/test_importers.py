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
from neobert.config.tokenizer import TokenizerConfig
from neobert.errors import PipelineError
from neobert.export.export import build_embedder, write_directory
from neobert.io import sha256_file
from neobert.model.pretrained import open_pretrained, own_tokenizer
from neobert.model.storage import load_model
from neobert.tokenization.build import build_tokenizer

VOCAB, HIDDEN, HEADS, LAYERS, INNER, LENGTH = 384, 32, 4, 2, 64, 48


class PublishedNeoBERT(nn.Module):
    """The published layout, written from its description: qkv by head, complex RoPE on neighbours, one w12."""

    def __init__(self, vocab=VOCAB):
        super().__init__()
        self.model = nn.Module()
        self.model.encoder = nn.Embedding(vocab, HIDDEN, padding_idx=0)
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
        self.decoder = nn.Linear(HIDDEN, vocab)

    def hidden(self, ids):
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
        return self.model.layer_norm(x)

    def forward(self, ids):
        return self.decoder(self.hidden(ids))


def shake(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + float(parameter.dim() == 1))
    return model.eval()


def published(directory, tokenizer_dir, vocab=VOCAB, length=LENGTH):
    model = shake(PublishedNeoBERT(vocab))
    shutil.copytree(tokenizer_dir, directory)
    shape = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": vocab}
    # intermediate_size is stated before or after the 2/3 rule, depending on who exported: the weights decide.
    config = {**shape, "model_type": "neobert", "intermediate_size": 96, "norm_eps": 1e-5, "max_length": length}
    config["auto_map"] = {"AutoConfig": "model.NeoBERTConfig", "AutoModel": "model.NeoBERT"}
    (directory / "model.py").write_text("raise SystemExit('code of the directory was run')")
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


KEY = "longer_context.pretrained_from"


def logits_of(directory, tokenizer_dir, ids):
    model, info = open_pretrained(KEY, directory, tokenizer_dir)
    length = ids.shape[1]
    flat = (ids[0], torch.arange(length), torch.tensor([0, length], dtype=torch.int32), length)
    with torch.no_grad():
        return model.eval()(*flat), info


@pytest.fixture
def ids():
    return torch.randint(5, 70, (1, 21), generator=torch.Generator().manual_seed(0))


def test_published_neobert_is_converted_exactly_with_its_decoder(tmp_path, tokenizer_dir, ids):
    theirs = published(tmp_path / "hf", tokenizer_dir)
    found, info = logits_of(tmp_path / "hf", tokenizer_dir, ids)
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
    found, info = logits_of(tmp_path / "hf", tokenizer_dir, ids)
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
    (again, described), state = open_pretrained(KEY, tmp_path / "hf", tokenizer_dir), model.state_dict()
    assert {key: value.dtype for key, value in again.state_dict().items()} == {k: v.dtype for k, v in state.items()}
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert (described.mask_token_id, described.embedding) == (info.mask_token_id, None)


def test_a_directory_of_ours_comes_under_the_pipelines_tokenizer(make_model_dir, tmp_path, tokenizer_dir):
    source = make_model_dir()
    rewritten = shutil.copytree(tokenizer_dir, tmp_path / "rewritten")
    text = json.dumps(json.loads((rewritten / "tokenizer.json").read_text()), indent=1)
    (rewritten / "tokenizer.json").write_text(text)  # the same tokenizer in other bytes, as another release saves it
    model, info = open_pretrained(KEY, source, rewritten)
    assert info.tokenizer_sha256 == sha256_file(rewritten / "tokenizer.json")
    assert info.embedding is None
    assert torch.equal(model.state_dict()["decoder.weight"], load_model(source)[0].state_dict()["decoder.weight"])


def test_what_cannot_be_converted_says_why(tmp_path, tokenizer_dir):
    with pytest.raises(PipelineError, match="no model directory"):
        open_pretrained(KEY, tmp_path, tokenizer_dir)
    eurobert(tmp_path / "biased", tokenizer_dir, mlp_bias=True)
    with pytest.raises(PipelineError, match="has mlp_bias"):
        open_pretrained(KEY, tmp_path / "biased", tokenizer_dir)
    published(tmp_path / "pickled", tokenizer_dir)
    (tmp_path / "pickled/model.safetensors").rename(tmp_path / "pickled/pytorch_model.bin")
    with pytest.raises(PipelineError, match="pickled"):
        open_pretrained(KEY, tmp_path / "pickled", tokenizer_dir)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(PipelineError, match="'bert' model"):
        open_pretrained(KEY, tmp_path / "bert", tokenizer_dir)


def edit_weights(directory, change):
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors")


def test_every_tensor_is_used_and_none_is_missing(tmp_path, tokenizer_dir, ids):
    theirs = published(tmp_path / "hf", tokenizer_dir)
    edit_weights(tmp_path / "hf", lambda state: state.update({"model.freqs_cis": torch.ones(3)}))
    found, _ = logits_of(tmp_path / "hf", tokenizer_dir, ids)  # a buffer more does not matter
    with torch.no_grad():
        assert torch.allclose(found, theirs(ids)[0], rtol=1e-4, atol=1e-4)
    edit_weights(tmp_path / "hf", lambda state: state.update({"classifier.weight": torch.ones(3)}))
    with pytest.raises(PipelineError, match=r"a neobert encoder does not: classifier\.weight"):
        open_pretrained(KEY, tmp_path / "hf", tokenizer_dir)
    edit_weights(tmp_path / "hf", lambda state: state.pop("model.transformer_encoder.1.ffn.w3.weight"))
    with pytest.raises(PipelineError, match=r"has no transformer_encoder\.1\.ffn\.w3\.weight"):
        open_pretrained(KEY, tmp_path / "hf", tokenizer_dir)


def test_a_directorys_own_tokenizer_serves_the_pipeline(tmp_path, tokenizer_dir, caplog):
    published(tmp_path / "hf", tokenizer_dir)
    build_tokenizer(TokenizerConfig(name_or_path=str(tmp_path / "hf")), tmp_path / "no-corpus", tmp_path / "data")
    _, info = open_pretrained(KEY, tmp_path / "hf", tmp_path / "data")
    assert info.tokenizer_sha256 == sha256_file(tmp_path / "data" / "tokenizer.json")
    assert own_tokenizer(tmp_path / "hf") == tmp_path / "hf"
    (tmp_path / "hf" / "tokenizer.json").unlink()
    open_pretrained(KEY, tmp_path / "hf", tmp_path / "data")
    assert "has no tokenizer.json" in caplog.text


def test_weights_in_half_precision_are_read_as_single(tmp_path, tokenizer_dir):
    published(tmp_path / "hf", tokenizer_dir)
    edit_weights(tmp_path / "hf", lambda state: state.update({k: v.bfloat16() for k, v in state.items()}))
    model, _ = open_pretrained(KEY, tmp_path / "hf", tokenizer_dir)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("change", ["lowercase", "vocabulary"])
def test_another_tokenizer_is_refused(tmp_path, tokenizer_dir, change):
    published(tmp_path / "hf", tokenizer_dir)
    other = shutil.copytree(tokenizer_dir, tmp_path / "other")
    described = json.loads((other / "tokenizer.json").read_text())
    if change == "vocabulary":
        described["model"]["vocab"]["quack"] = described["model"]["vocab"].pop("quick")
        message = "has another vocabulary than"
    else:
        described["normalizer"] = None if described["normalizer"] else {"type": "Lowercase"}
        message = "splits text otherwise than"
    (other / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(PipelineError, match=f"{message}.*set tokenizer.name_or_path to {tmp_path / 'hf'}"):
        open_pretrained(KEY, tmp_path / "hf", other)
