"""Stage tokenize: data/corpus and data/tokenizer -> data/tokens."""

from pathlib import Path

from neobert.tokenization.stage import tokenize
from stages.stage import run, runs_dir


def main() -> None:
    tokenize(Path("data/corpus"), Path("data/tokenizer"), Path("data/tokens"), runs_dir() / "shards")


if __name__ == "__main__":
    run(main)
