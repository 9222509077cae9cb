"""A trained-looking model directory with a real tokenizer, small enough to export in seconds."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from neobert.config.model import ModelConfig
from neobert.io import sha256_file, write_json
from neobert.model.embedding import EmbeddingModel
from neobert.model.heads import MaskedLM
from neobert.model.storage import EmbeddingInfo, ModelInfo, save_model

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(["the quick brown fox jumps over a lazy dog, def add(a, b): return a + b"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    config = {"tokenizer_class": "TokenizersBackend", "model_max_length": 10**30}
    write_json(directory / "tokenizer_config.json", {**config, **dict(zip(names, SPECIAL, strict=True))})
    return directory


@pytest.fixture
def make_model_dir(tmp_path, tokenizer_dir):
    """``make(embedding=EmbeddingInfo(...), **model changes) -> model directory``."""

    def make(embedding: EmbeddingInfo | None = None, **changes) -> Path:
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
        config = ModelConfig(**{**small, "max_position_embeddings": 64, **changes})
        size = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json")).get_vocab_size()
        torch.manual_seed(0)
        model = MaskedLM(config, config.padded_vocab_size(size), 0)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
                elif not config.ngpt:
                    parameter.mul_(5.0)
        info = ModelInfo(
            model=config,
            vocab_size=config.padded_vocab_size(size),
            pad_token_id=0,
            cls_token_id=2,
            sep_token_id=3,
            mask_token_id=4,
            unk_token_id=1,
            max_length=48,
            tokenizer_sha256=sha256_file(tokenizer_dir / "tokenizer.json"),
            embedding=embedding,
        )
        extra = {}
        if embedding is not None and embedding.token_weights:
            embedder = EmbeddingModel(model.encoder, embedding.pooling, embedding.normalize, True)
            embedder.set_token_weights(torch.rand(info.vocab_size) * 5 + 0.1)
            extra = embedder.extra_state()
        save_model(tmp_path / "model", {**model.state_dict(), **extra}, info, tokenizer_dir)
        return tmp_path / "model"

    return make
