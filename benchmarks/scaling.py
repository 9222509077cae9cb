"""Weak scaling: tokens/s of the trainer's step over 1, 2, 4, ... ranks of one host, each with the same batch.

    python -m benchmarks.scaling [--profile neobert-250m] [--set key=value ...] [--ranks 1 2 4] [--strategies ddp
    fsdp2] [--buckets 25 256]

Each case is its own launch of the trainer's step under torchrun, since ranks cannot change within a process. ddp has a
case for each of `--buckets`, which are values of `runtime.distributed.ddp_bucket_cap_mb`. Efficiency is tokens/s over
the single rank's times the ranks. Prints a table, a line when its case is done, then one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys

import torch

from benchmarks.machine import device_name, machine
from benchmarks.subject import TrainerStep, params_with
from neobert.config.runtime import DistributedConfig
from neobert.training.metrics import peak_flops

MARK = "SCALING "


def work(args: argparse.Namespace) -> None:
    """One rank of one case; rank 0 prints the figures."""
    torch.backends.cuda.matmul.allow_tf32 = True
    params = params_with(args.profile, args.set)
    bucket = args.buckets[0] if args.buckets else None
    distributed = DistributedConfig(strategy=args.strategies[0], ddp_bucket_cap_mb=bucket)
    subject = TrainerStep("trainer", params, args.phase, args.vocab_size, 320.0, distributed)
    subject.block(args.warmup, record=False)
    for _ in range(args.rounds):
        subject.train_step.workers.barrier()
        subject.block(args.steps, record=True)
    workers, seconds = subject.train_step.workers, statistics.median(subject.seconds)
    tokens = statistics.mean(tokens for tokens, _ in subject.work)
    flops = statistics.mean(flops or 0.0 for _, flops in subject.work)
    peak = peak_flops(device_name())
    if workers.is_main:
        figures = {
            "ranks": workers.world,
            "strategy": args.strategies[0],
            "ddp_bucket_cap_mb": bucket,
            "ms": seconds * 1e3,
            "tokens_per_second": tokens * workers.world / seconds,
            "mfu": None if peak is None else flops / seconds / peak,
            "peak_memory_gib": subject.peak_bytes / 2**30,
            "graphs_after_warmup": subject.late_graphs,
        }
        print(MARK + json.dumps(figures), flush=True)


def case(ranks: int, strategy: str, bucket: int | None) -> dict:
    """Launch one case with this command's own arguments."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    arguments = [*sys.argv[1:], "--strategies", strategy, "--buckets", *([str(bucket)] if bucket else [])]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "benchmarks.scaling", *arguments], capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise SystemExit(f"error: {ranks} ranks of {strategy} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[0].removeprefix(MARK))


def line(found: dict) -> str:
    """One line of the table."""
    mfu = "-" if found["mfu"] is None else f"{found['mfu']:.1%}"
    share = "-" if found["efficiency"] is None else f"{found['efficiency']:.3f}"
    name = f"{found['ranks']} x {found['strategy']}" if found["ranks"] > 1 else "1"
    if found["ranks"] > 1 and found["ddp_bucket_cap_mb"] is not None:
        name += f" {found['ddp_bucket_cap_mb']} MiB"
    return (
        f"{name:18} {found['ms']:8.1f} {found['tokens_per_second'] / 1e3:9.1f} {mfu:>7} "
        f"{found['peak_memory_gib']:6.1f} {share:>10}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Weak scaling of the training step.")
    parser.add_argument("--profile")
    parser.add_argument("--phase", choices=("pretrain", "longer_context"), default="pretrain")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--strategies", nargs="+", default=["ddp", "fsdp2"], choices=("ddp", "fsdp2", "hsdp"))
    parser.add_argument("--buckets", nargs="*", type=int, default=[], metavar="MIB")
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=6)
    args = parser.parse_args()
    if "RANK" in os.environ:
        work(args)
        return
    print(f"{device_name()}, torch {torch.__version__}")
    print(f"{'':18} {'ms':>8} {'ktok/s':>9} {'MFU':>7} {'GiB':>6} {'efficiency':>10}", flush=True)
    cases: list[dict] = []
    buckets = {"ddp": args.buckets or [None]}
    kinds = [(strategy, bucket) for strategy in args.strategies for bucket in buckets.get(strategy, [None])]
    for kind, ranks in itertools.product(kinds, args.ranks):
        if ranks > 1 or kind == kinds[0]:
            cases.append(found := case(ranks, *kind))
            alone = next((c["tokens_per_second"] for c in cases if c["ranks"] == 1), None)
            found["efficiency"] = alone and found["tokens_per_second"] / (alone * ranks)
            print(line(found), flush=True)
    command = "python -m benchmarks.scaling " + " ".join(sys.argv[1:])
    print(json.dumps({"command": command, **machine(), "cases": cases}))


if __name__ == "__main__":
    main()
