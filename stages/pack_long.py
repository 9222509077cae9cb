"""Stage pack_long: data/tokens -> data/packed_long, longer rows. (`--rank`, `--world`: as stages.tokenize.)"""

import sys
from pathlib import Path

from neobert.config.corpus import CorpusConfig
from neobert.config.load import load, load_seed
from neobert.config.packing import PackingConfig
from neobert.io import runs_dir
from neobert.jobs import Engine
from neobert.packing.stage import pack
from stages.stage import run


def main() -> None:
    engine = Engine.from_command_line(sys.argv[1:], load(CorpusConfig, "corpus").dask_scheduler)
    config = load(PackingConfig, "longer_context.packing")
    pack(Path("data/tokens"), Path("data/packed_long"), config, load_seed(), runs_dir() / "shards", engine)


if __name__ == "__main__":
    run(main)
