"""What a training stage reports in git: final metrics, history and loss curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neobert.io import write_json
from neobert.training.metrics import write_csv
from neobert.training.plots import loss_curve
from neobert.training.trainer import TrainResult


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Floats to 6 significant digits: what a person reads and git stores."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}


def write_reports(directory: Path, result: TrainResult, title: str) -> None:
    """metrics.json, history.csv and loss.png; without times, so that equal runs give equal files."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [rounded(row) for row in result.history]
    write_json(directory / "metrics.json", rounded(result.metrics))
    write_csv(directory / "history.csv", rows)
    loss_curve(rows, directory / "loss.png", title)
