"""A small corpus and tokenizers trained on it."""

from pathlib import Path

import pytest

from neobert.config.corpus import CorpusConfig
from neobert.config.tokenizer import TokenizerConfig
from neobert.corpus.build import write_corpus
from neobert.tokenization.build import build_tokenizer

TEXTS = [
    "The maxPool_size of a Layer is 3, isn't it? def get_maxSize(self): return self.max_size[0] + 1e-5",
    "Ünïcode wörds and naïve café; 東京 is a city. Straße İstanbul ΣΊΣΥΦΟΣ",
    "for i in range(10):\n    total += values[i] * weights[i]\n\treturn total",
    "A literal [MASK] and [SEP] token, [CLS] too; [PAD]ding. {'key': \"value\"} -> x != y",
] * 8


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Two train shards and a validation shard."""
    root = tmp_path_factory.mktemp("corpus")
    for name in "ab":
        (root / f"{name}.txt").write_text("\n\n".join(f"{text} {name} {i}" for i, text in enumerate(TEXTS)))
    files = [str(root / f"{name}.txt") for name in "ab"]  # entries, since small files of one share a shard
    config = CorpusConfig(source="files", files=files, text_documents="paragraph", validation_fraction=0.1)
    write_corpus(config, root / "corpus", root / "embedded")
    return root / "corpus"


@pytest.fixture(scope="session")
def tokenizer(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(TokenizerConfig(vocab_size=400), corpus, out)
    return out


@pytest.fixture(scope="session")
def byte_level(corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("byte_level")
    build_tokenizer(TokenizerConfig(algorithm="bpe", vocab_size=400), corpus, out)
    return out
