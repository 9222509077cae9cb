"""Stage ``evaluate``: models and data/embedded to reports/ (scores beside baselines, table and chart)."""

import logging
import shutil
from pathlib import Path

from neobert.config.evaluation import EvaluationConfig
from neobert.config.load import load, load_seed, read_params
from neobert.evaluation.evaluate import ModelPaths, evaluate
from neobert.evaluation.report import table, write_reports
from neobert.evaluation.run import write_results
from stages.stage import run

REPORTS = Path("reports")


def model_paths() -> ModelPaths:
    """The models of this pipeline; the baseline is the one that fine-tuning started from."""
    pretrained = Path(read_params()["contrastive"]["pretrained_from"])  # dvc.yaml needs the key there, too
    return ModelPaths(pretrained, Path("models/contrastive"), Path("models/export"))


def main() -> None:
    config = load(EvaluationConfig, "evaluation")
    scores, rows = evaluate(config, model_paths(), load_seed())
    shutil.rmtree(REPORTS / "evaluate", ignore_errors=True)
    (REPORTS / "evaluate").mkdir(parents=True)  # an output that DVC expects where no task is declared, too
    write_results(REPORTS / "evaluate", scores)
    write_reports(REPORTS, scores.by_model, rows, config.headline_task)
    logging.getLogger(__name__).info("scores:\n%s", table(scores.by_model, rows))


if __name__ == "__main__":
    run(main)
