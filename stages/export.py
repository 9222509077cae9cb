"""Stage ``export``: models/contrastive to models/export, loadable by transformers and sentence-transformers."""

from pathlib import Path

from neobert.config.export import ExportConfig
from neobert.config.load import load
from neobert.export.export import export
from neobert.export.provenance import lock_facts, metric_facts
from neobert.io import write_json
from stages.stage import run

SOURCE, TARGET, REPORTS = Path("models/contrastive"), Path("models/export"), Path("reports")
TRAININGS = ("pretrain", "longer_context", "contrastive")


def main() -> None:
    facts = {
        "Data, models and params (DVC)": lock_facts(Path("dvc.lock"), without=("export", "evaluate")),
        "Training": metric_facts(REPORTS, TRAININGS),
    }
    layout, differences = export(SOURCE, TARGET, load(ExportConfig, "export"), facts)
    write_json(REPORTS / "export" / "metrics.json", {"format": layout, "largest_difference": differences})


if __name__ == "__main__":
    run(main)
