"""Stage corpus: text -> data/corpus; for the embedded default also pairs and evaluation tasks -> data/embedded."""

from pathlib import Path

from neobert.config.corpus import CorpusConfig
from neobert.config.load import load
from neobert.corpus.build import write_corpus
from stages.stage import run


def main() -> None:
    write_corpus(load(CorpusConfig, "corpus"), Path("data/corpus"), Path("data/embedded"))


if __name__ == "__main__":
    run(main)
