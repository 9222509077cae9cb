"""Stage ``export``: models/contrastive to models/export, loadable by transformers and sentence-transformers."""

from pathlib import Path

from neobert.config.export import ExportConfig
from neobert.config.load import load
from neobert.export.export import export
from neobert.export.provenance import lock_facts, locked_upstream, metric_facts
from neobert.io import write_json
from stages.stage import run

SOURCE, TARGET, REPORTS = Path("models/contrastive"), Path("models/export"), Path("reports")
# Stages and the names of their reports.
TRAININGS = {"pretrain": "pretrain", "longer_context": "longer_context", "contrastive_finetune": "contrastive"}


def main() -> None:
    made_by = locked_upstream(Path("dvc.lock"), str(SOURCE))
    facts = {
        "Data, models and params (DVC)": lock_facts(made_by),
        "Training": metric_facts(REPORTS, [report for stage, report in TRAININGS.items() if stage in made_by]),
    }
    layout, differences = export(SOURCE, TARGET, load(ExportConfig, "export"), facts)
    write_json(REPORTS / "export" / "metrics.json", {"format": layout, "largest_difference": differences})


if __name__ == "__main__":
    run(main)
