"""Stage ``export``: models/contrastive to models/export, loadable by transformers and sentence-transformers."""

from pathlib import Path

from neobert.config.export import ExportConfig
from neobert.config.load import load
from neobert.export.export import export
from neobert.io import write_json
from stages.stage import run

SOURCE, TARGET, REPORTS = Path("models/contrastive"), Path("models/export"), Path("reports/export")


def main() -> None:
    layout, differences = export(SOURCE, TARGET, load(ExportConfig, "export"))
    write_json(REPORTS / "metrics.json", {"format": layout, "largest_difference": differences})


if __name__ == "__main__":
    run(main)
