"""Optional stage ``pseudo_perplexity``: how well a model predicts held-out text; reports/pseudo_perplexity."""

from pathlib import Path

from neobert.config.load import load, load_seed
from neobert.config.pseudo_perplexity import PseudoPerplexityConfig
from neobert.evaluation.pseudo_perplexity import measure
from neobert.io import write_json
from stages.stage import run

REPORTS = Path("reports/pseudo_perplexity")


def main() -> None:
    write_json(REPORTS / "metrics.json", measure(load(PseudoPerplexityConfig, "pseudo_perplexity"), load_seed()))


if __name__ == "__main__":
    run(main)
