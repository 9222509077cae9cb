"""Optional stage ``glue``: fine-tune a pretrained model on GLUE tasks; reports/glue."""

from pathlib import Path

from neobert.config.glue import GlueConfig
from neobert.config.load import load, load_seed
from neobert.evaluation.glue import run_glue
from neobert.evaluation.glue_report import write_reports
from stages.stage import run

REPORTS = Path("reports/glue")


def main() -> None:
    write_reports(REPORTS, run_glue(load(GlueConfig, "glue"), load_seed()))


if __name__ == "__main__":
    run(main)
