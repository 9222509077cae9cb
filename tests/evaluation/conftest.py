"""A tiny model directory with a real tokenizer, made once."""

import hashlib
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from neobert.config.model import ModelConfig
from neobert.model.heads import MaskedLM
from neobert.model.storage import EmbeddingInfo, ModelInfo, save_model

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ALPHABET = [chr(c) for c in range(ord("a"), ord("z") + 1)]
VOCABULARY = [*SPECIALS, *ALPHABET, *(f"##{c}" for c in ALPHABET), "the", "cat", "dog", "##ing", "##ed", "run", "red"]


def make_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    rust = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer()
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, model_max_length=64, **names)
    tokenizer.save_pretrained(directory)
    return tokenizer


def make_model(directory: Path, embedding: EmbeddingInfo | None, seed: int = 0, **model) -> ModelInfo:
    """A model directory with random weights large enough that positions and layers matter."""
    make_tokenizer(directory.parent / "tokenizer")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = ModelConfig(**{**shape, "max_position_embeddings": 64, "decoder_init_range": 0.2, **model})
    config_range = {"embedding_init_range": 1.0}
    config = ModelConfig(**{**config.__dict__, **config_range})
    info = ModelInfo(
        config,
        128,
        0,
        2,
        3,
        4,
        1,
        48,
        hashlib.sha256((directory.parent / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest(),
        embedding,
    )
    torch.manual_seed(seed)
    state = MaskedLM(config, 128, 0).state_dict()
    if embedding is not None and embedding.token_weights:
        state["token_weights"] = torch.randn(128)
    save_model(directory, state, info, directory.parent / "tokenizer")
    return info


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "contrastive"
    make_model(directory, EmbeddingInfo("mean", True, {"query": "cat ", "document": ""}, token_weights=True))
    return directory


def sentences(count: int, seed: int = 0, longest: int = 30) -> list[str]:
    draw = random.Random(seed)
    words = ["the", "cat", "running", "dogs", "red", "jumped", "x", "Qu\u00e9", "[MASK]", "\u4e2d", "a.b_c"]
    return [" ".join(draw.choices(words, k=draw.randint(0, longest))) for _ in range(count)]
