"""Stage pack: data/tokens -> data/packed, rows for pretraining."""

from pathlib import Path

from neobert.config.load import load, load_seed
from neobert.config.packing import PackingConfig
from neobert.packing.stage import pack
from stages.stage import run, runs_dir


def main() -> None:
    pack(Path("data/tokens"), Path("data/packed"), load(PackingConfig, "packing"), load_seed(), runs_dir() / "shards")


if __name__ == "__main__":
    run(main)
