"""Stage tokenize: data/corpus and data/tokenizer -> data/tokens.

`python -m stages.tokenize --rank R --world W` makes a share of the shards (a task of a Slurm array) and publishes
nothing; `dvc repro` then finds them finished.
"""

import sys
from pathlib import Path

from neobert.config.corpus import CorpusConfig
from neobert.config.load import load
from neobert.io import runs_dir
from neobert.jobs import Engine
from neobert.tokenization.stage import tokenize
from stages.stage import run


def main() -> None:
    engine = Engine.from_command_line(sys.argv[1:], load(CorpusConfig, "corpus").dask_scheduler)
    tokenize(Path("data/corpus"), Path("data/tokenizer"), Path("data/tokens"), runs_dir() / "shards", engine)


if __name__ == "__main__":
    run(main)
