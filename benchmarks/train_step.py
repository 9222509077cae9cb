"""The trainer's step: tokens/s, MFU, memory, where the time goes, and A against B.

    python -m benchmarks.train_step [--profile neobert-250m] [--phase longer_context] [--set key=value ...]
        [--ab key=value ...] [--peers [NAME ...]] [--kernels N] [--steps 10] [--rounds 5]

A is params.yaml with the profile and `--set`; B is A with `--ab` as well. With `--peers`, Hugging Face's EuroBERT
of A's dimensions (three ways) and ModernBERT-base join, on the same rows (`benchmarks.peers`). All of them take
turns, in one process, a block of `--steps` steps a round, after a warm-up; figures are medians over rounds, and tokens
and FLOPs those of the very batches that were timed. A peer that fails is reported and left out. `--kernels N` adds
A's GPU time by kernel and its N largest. Prints a table, then one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import torch

from benchmarks import kernel_time
from benchmarks.machine import device_name, machine
from benchmarks.peers import PEERS
from benchmarks.subject import Timed, TrainerStep, params_with
from neobert.errors import PipelineError
from neobert.training.metrics import peak_flops


def figures(subject: Timed, peak: float | None) -> dict[str, Any]:
    """What was measured of one subject: medians over its blocks."""
    seconds = statistics.median(subject.seconds)
    blocks = list(zip(subject.seconds, subject.work, strict=True))
    rates = [flops / of_block for of_block, (_, flops) in blocks if flops is not None]
    speed = statistics.median(rates) if rates else None
    return {
        "ms": seconds * 1e3,
        "ms_min": min(subject.seconds) * 1e3,
        "ms_max": max(subject.seconds) * 1e3,
        "steps_per_second": 1 / seconds,
        "tokens_per_second": statistics.median(tokens / of_block for of_block, (tokens, _) in blocks),
        "tflops_per_second": None if speed is None else speed / 1e12,
        "mfu": None if speed is None or peak is None else speed / peak,
        "peak_memory_gib": subject.peak_bytes / 2**30,
        "graphs_after_warmup": subject.late_graphs,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Results as lines of text."""
    lines = [f"{'':44} {'ms':>8} {'ktok/s':>9} {'TFLOP/s':>8} {'MFU':>7} {'GiB':>7} {'recompiles':>10}"]
    for name, row in results.items():
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        tflops = "-" if row["tflops_per_second"] is None else f"{row['tflops_per_second']:.1f}"
        lines.append(
            f"{name:44} {row['ms']:8.1f} {row['tokens_per_second'] / 1e3:9.1f} {tflops:>8} {mfu:>7} "
            f"{row['peak_memory_gib']:7.1f} {row['graphs_after_warmup']:10d}"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of the training step.")
    parser.add_argument("--profile", help="of profiles/, merged over params.yaml")
    parser.add_argument("--phase", choices=("pretrain", "longer_context"), default="pretrain")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="params of A (and B)")
    parser.add_argument("--ab", nargs="*", default=[], metavar="KEY=VALUE", help="params of B alone")
    parser.add_argument("--peers", nargs="*", metavar="NAME", help=f"of {', '.join(PEERS)} (none named: all)")
    parser.add_argument("--kernels", type=int, metavar="N", help="also list A's N largest GPU kernels")
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--mean-document", type=float, help="default: 320 up to 1024 tokens a row, else 475")
    parser.add_argument("--steps", type=int, default=10, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each subject")
    parser.add_argument("--warmup", type=int, default=6, help="steps before any is timed")
    args = parser.parse_args()
    args.peers = list(PEERS) if args.peers == [] else args.peers or []
    if unknown := set(args.peers) - set(PEERS):
        parser.error(f"--peers: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    if args.kernels and not torch.cuda.is_available():
        parser.error("--kernels lists a GPU's kernels, and there is no GPU")
    return args


def ours(args: argparse.Namespace) -> list[TrainerStep]:
    """A, and B where asked for."""
    torch.backends.cuda.matmul.allow_tf32 = True
    params = params_with(args.profile, args.set)
    rows = params["longer_context"] if args.phase == "longer_context" else params
    mean = args.mean_document or (320.0 if rows["packing"]["max_length"] <= 1024 else 475.0)
    subjects = [TrainerStep("A (this trainer)", params, args.phase, args.vocab_size, mean)]
    if args.ab:
        name = "B (" + " ".join(args.ab) + ")"
        other = params_with(args.profile, [*args.set, *args.ab])
        subjects.append(TrainerStep(name, other, args.phase, args.vocab_size, mean))
    return subjects


def warm_peers(args: argparse.Namespace, first: TrainerStep, failed: dict[str, str]) -> list[Timed]:
    """The peers that work here, warmed up; why others do not goes to `failed`."""
    peers: list[Timed] = []
    for make in (PEERS[name] for name in args.peers):
        try:
            peers.append(warmed(make(first), args.warmup))
        # Other people's code: an import, a compilation or the memory may fail, and our figures shall not be lost.
        except Exception as error:
            failed[make.label] = f"{type(error).__name__}: {error}"
    return peers


def warmed(subject: Timed, steps: int) -> Timed:
    """The subject, after some steps."""
    start = time.monotonic()
    subject.block(steps, record=False)
    print(f"{subject.name}: warm after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return subject


def main() -> None:
    args = arguments()
    failed: dict[str, str] = {}
    try:
        mine = ours(args)
        subjects = [warmed(subject, args.warmup) for subject in mine]
        if args.peers:
            subjects += warm_peers(args, mine[0], failed)
            # A second model of transformers changes globals that the first one's graph is guarded by.
            for subject in subjects:
                warmed(subject, 1)
        peak = peak_flops(device_name())
        for number in range(args.rounds):
            for subject in subjects:
                subject.block(args.steps, record=True)
            results = {subject.name: figures(subject, peak) for subject in subjects}
            print(f"after round {number + 1} of {args.rounds}\n{table(results)}", file=sys.stderr, flush=True)
        kernels = kernel_time.kernel_times(mine[0], 4, args.kernels) if args.kernels else None
    except PipelineError as error:
        raise SystemExit(f"error: {error}") from None
    first = mine[0]
    tokens = statistics.mean(tokens for tokens, _ in first.work)
    segments = first.segments[args.warmup :]
    about = machine()
    print(
        f"{about['device']}, torch {about['torch']}, varlen kernel {about['varlen_kernel']}: "
        f"{tokens:.0f} tokens a step in {min(segments)} to {max(segments)} segments"
    )
    print(table(results))
    for name, reason in failed.items():
        print(f"{name} failed: {reason[:300]}")
    breakdown = first.breakdown(args.steps)
    for name, times in breakdown.items():
        print(f"  {name:12} p50 {times['p50_ms']:8.2f} ms  p95 {times['p95_ms']:8.2f} ms")
    if kernels:
        print(kernel_time.table(kernels))
    print(
        json.dumps(
            {
                "command": "python -m benchmarks.train_step " + " ".join(sys.argv[1:]),
                **about,
                "tokens_per_step": tokens,
                "segments": {"min": min(segments), "mean": statistics.mean(segments), "max": max(segments)},
                "results": results,
                "failed": failed,
                "timing": breakdown,
                "kernels": kernels,
            }
        )
    )


if __name__ == "__main__":
    main()
