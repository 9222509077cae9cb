"""The loss curve as a picture: DVC's own plots load their renderer from a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neobert.io import atomic_path


def loss_curve(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Training and evaluation loss over steps, and the learning rate, as a PNG (the same bytes for the same rows)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    trained = [row for row in rows if "loss" in row]
    evaluated = [row for row in rows if "eval_loss" in row]
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axis.plot([r["step"] for r in trained], [r["loss"] for r in trained], label="training", linewidth=1)
    if evaluated:
        axis.plot([r["step"] for r in evaluated], [r["eval_loss"] for r in evaluated], "o-", label="held out", ms=3)
    axis.set(xlabel="step", ylabel="loss", title=title)
    rate = axis.twinx()
    rate.plot([r["step"] for r in trained], [r["lr"] for r in trained], color="0.7", linewidth=1)
    rate.set_ylabel("learning rate", color="0.5")
    axis.legend(loc="upper right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)
