"""Stage pack_long: data/tokens -> data/packed_long, longer rows and their length mixture for the longer context."""

from pathlib import Path

from neobert.config.load import load, load_seed
from neobert.config.packing import PackingConfig
from neobert.packing.stage import pack
from stages.stage import run, runs_dir


def main() -> None:
    config = load(PackingConfig, "longer_context.packing")
    pack(Path("data/tokens"), Path("data/packed_long"), config, load_seed(), runs_dir() / "shards")


if __name__ == "__main__":
    run(main)
