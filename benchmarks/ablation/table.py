"""Means and standard deviations over seeds, and the difference to the baseline, paired by seed.

A seed moves weights, masks and the order of rows alike for all variants, so the difference within a seed varies less
than the values do; its own mean and standard deviation say whether a variant is better. Standard deviations are of a
sample (n - 1).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neobert.io import atomic_path

if TYPE_CHECKING:
    from benchmarks.ablation.sweep import Sweep  # needs DVC, which a table of other programs does without

Values = dict[int, dict[str, float]]
"""{seed: {label of a metric: value}} of a variant."""


def spread(values: Sequence[float], sign: str = "") -> str:
    """`mean ± standard deviation`; of one value only itself."""
    mean = statistics.mean(values)
    form = f"{sign},.0f" if abs(mean) >= 1000 else f"{sign}.4f"
    return format(mean, form) + (f" ± {format(statistics.stdev(values), form.lstrip('+'))}" if len(values) > 1 else "")


def differences(values: Values, baseline: Values, label: str) -> list[float]:
    """Value minus the baseline's, for each seed that both have."""
    return [values[seed][label] - baseline[seed][label] for seed in sorted(values.keys() & baseline.keys())]


def markdown(sweep: Sweep, results: dict[str, Values]) -> str:
    """A row a variant, in the sweep's order, with its difference to the baseline; of one variant a row a metric."""
    labels = [metric.label for metric in sweep.metrics]
    there = [name for name in sweep.variants if name in results]
    columns = {name: {label: [v[label] for v in results[name].values()] for label in labels} for name in there}
    if len(sweep.variants) == 1:
        (values,) = columns.values()
        seeds = len(results[sweep.baseline])
        return "\n".join(
            [f"| | over {seeds} seeds |", "|---|---:|", *(f"| {label} | {spread(values[label])} |" for label in labels)]
        )
    first, *others = labels
    heading = ["variant", "seeds", first, f"minus {sweep.baseline}", *others]
    lines = [f"| {' | '.join(heading)} |", "|---|" + "---:|" * (len(heading) - 1)]
    for name, values in columns.items():
        pairs = differences(results[name], results.get(sweep.baseline, {}), first)
        difference = spread(pairs, "+") if pairs and name != sweep.baseline else "–"
        cells = [name, str(len(results[name])), spread(values[first]), difference, *(spread(values[o]) for o in others)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(sweep: Sweep, results: dict[str, Values], path: Path) -> None:
    """The first metric of each variant, mean and standard deviation, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    label = sweep.metrics[0].label
    values = {name: [seed[label] for seed in results[name].values()] for name in results}
    figure, axis = pyplot.subplots(figsize=(7, 1.2 + 0.3 * len(values)), layout="constrained")
    means = [statistics.mean(v) for v in values.values()]
    errors = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values.values()]
    axis.errorbar(means, list(values), xerr=errors, fmt="o", capsize=3)
    if sweep.baseline in values:
        axis.axvline(statistics.mean(values[sweep.baseline]), color="0.8", zorder=0)
    axis.invert_yaxis()
    axis.set(xlabel=f"{label}, mean and standard deviation over seeds")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)
