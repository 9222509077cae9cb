"""Stage contrastive_preprocess: pair sources -> validated, tokenised data/pairs, and a report of what was dropped."""

import logging
from pathlib import Path

from neobert.config.contrastive_data import ContrastiveDataConfig
from neobert.config.load import load
from neobert.contrastive.preprocess import preprocess
from neobert.io import runs_dir, write_json
from stages.stage import run

log = logging.getLogger(__name__)


def main() -> None:
    """Prepare data/pairs from contrastive_data.sources."""
    config = load(ContrastiveDataConfig, "contrastive_data")
    report = preprocess(config, Path("data/tokenizer"), Path("data/pairs"), runs_dir() / "pairs")
    write_json("reports/contrastive_preprocess/metrics.json", report)
    log.info("pairs: %s", ", ".join(f"{key} {value:,}" for key, value in report["total"].items()))


if __name__ == "__main__":
    run(main)
