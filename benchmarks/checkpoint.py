"""What checkpoints cost: the stall of an asynchronous save against a synchronous one, MB/s of saving and loading.

    python -m benchmarks.checkpoint [--profile neobert-250m] [--set key=value ...] [--steps 30] [--rounds 3]
    [--directory DIR]

Blocks of `--steps` steps are timed without a save, with an asynchronous one at their start, and with a
synchronous one, in turn; a stall is the difference of medians. Blocks are long enough for the background write to
end inside them, so its share of the machine counts. The first save, which allocates pinned memory, is reported
alone. A table, then one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.machine import device_name, machine
from benchmarks.subject import TrainerStep, params_with
from neobert.training.checkpoint import Checkpointer, load_tensors


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Measured:
    """A training whose saves are timed."""

    def __init__(self, subject: TrainerStep, directory: Path) -> None:
        self.subject = subject
        self.saver = Checkpointer(directory, subject.train_step.workers, keep=2)
        subject.train_step.before_update = self.saver.before_update
        self.saved = 0

    def save(self, wait: bool) -> None:
        """One save, as the loop does it."""
        self.saved += 1
        synchronize()
        self.saver.save(self.saved, self.subject.train_step.state(), {"step": self.saved}, wait=wait)

    def block(self, steps: int, mode: str) -> tuple[float, float]:
        """(seconds of a block of steps, seconds until its save was committed or 0); mode none, async or sync."""
        synchronize()
        start = time.perf_counter()
        if mode != "none":
            self.save(wait=mode == "sync")
        committed = time.perf_counter() - start if mode == "sync" else 0.0
        for _ in range(steps):
            self.subject.step()
        synchronize()
        seconds = time.perf_counter() - start
        self.saver.wait()
        return seconds, committed


def measure(args: argparse.Namespace, directory: Path) -> dict[str, float]:
    """All figures."""
    params = params_with(args.profile, args.set)
    subject = TrainerStep("trainer", params, "pretrain", args.vocab_size, 320.0)
    subject.block(args.warmup, record=False)
    run = Measured(subject, directory)
    first, _ = run.block(1, "async")
    run.block(args.steps, "async")
    seconds: dict[str, list[float]] = {"none": [], "async": [], "sync": []}
    commits = []
    for _ in range(args.rounds):
        for mode, found in seconds.items():
            block, committed = run.block(args.steps, mode)
            found.append(block)
            if mode == "sync":
                commits.append(committed)
    medians = {mode: statistics.median(found) for mode, found in seconds.items()}
    state = subject.train_step.state()
    size = sum(tensor.nbytes for tensor in state.values()) / 1e6
    newest = directory / str(run.saved)
    start = time.perf_counter()
    load_tensors(newest, state)
    synchronize()
    loading = time.perf_counter() - start
    run.saver.close()
    step = medians["none"] / args.steps
    stall = {mode: max(medians[mode] - medians["none"], 0.0) for mode in ("async", "sync")}
    return {
        "megabytes": size,
        "step_ms": step * 1e3,
        "first_save_ms": first * 1e3,
        "stall_async_ms": stall["async"] * 1e3,
        "stall_sync_ms": stall["sync"] * 1e3,
        "async_over_sync": stall["async"] / stall["sync"] if stall["sync"] else 0.0,
        "wall_share_at_1000": stall["async"] / (1000 * step + stall["async"]),
        "save_mb_per_second": size / statistics.median(commits),
        "load_mb_per_second": size / loading,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of checkpoints.")
    parser.add_argument("--profile")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--steps", type=int, default=30, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=6)
    parser.add_argument("--directory", type=Path, help="where to save (default: a temporary directory)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as scratch:
        figures = measure(args, Path(scratch) / "checkpoints")
    print(f"{device_name()}, torch {torch.__version__}")
    for name, value in figures.items():
        print(f"  {name:20} {value:12.4f}")
    command = "python -m benchmarks.checkpoint " + " ".join(sys.argv[1:])
    print(json.dumps({"command": command, **machine(), **figures}))


if __name__ == "__main__":
    main()
