"""What runs were trained on and for how long, summed over their interruptions, from their throughput.jsonl.

Seconds differ from run to run, so no DVC out may hold them; they reach the model card on the user's word, as
`export.hardware`, for which `python -m stages.report` prints the line. Wall time of every process that trained counts,
evaluations, saves and steps done again after a crash included; what a process did before its first row's window or
after its last row does not. Nor does a row that is unreadable: a kill, a full disk or a power loss cut it short.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from neobert.training.metrics import read_rows


def spent(directories: list[Path]) -> str | None:
    """Such as "8 x NVIDIA H200, 120.3 GPU hours"; None where one of the runs left nothing here.

    A training inside another's directory (the embedding warm-up) belongs to it.
    """
    seconds: dict[str, float] = defaultdict(float)
    devices: dict[str, int] = defaultdict(int)
    for directory in directories:
        files = sorted(directory.rglob("throughput.jsonl"))
        if not files:
            return None
        for row in (row for file in files for row in read_rows(file)):
            seconds[row["device"]] += row["devices"] * row["seconds"]
            devices[row["device"]] = max(devices[row["device"]], row["devices"])
    parts = [
        f"{devices[name]} x {name}, {total / 3600:.1f} {'hours' if name == 'CPU' else 'GPU hours'}"
        for name, total in sorted(seconds.items())
    ]
    return "; ".join(parts) or None
