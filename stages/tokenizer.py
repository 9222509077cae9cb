"""Stage tokenizer: train one on data/corpus, or load one -> data/tokenizer."""

from pathlib import Path

from neobert.config.load import load
from neobert.config.tokenizer import TokenizerConfig
from neobert.tokenization.build import build_tokenizer
from stages.stage import run


def main() -> None:
    build_tokenizer(load(TokenizerConfig, "tokenizer"), Path("data/corpus"), Path("data/tokenizer"))


if __name__ == "__main__":
    run(main)
