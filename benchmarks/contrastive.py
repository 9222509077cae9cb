"""Contrastive training speed against sentence-transformers' trainer: same weights, pairs, batch and precision.

``python -m benchmarks.contrastive`` builds an encoder with random weights, exports it, checks that both libraries
give the same embeddings, and trains both on the embedded pairs at their natural lengths (``dvc repro corpus
tokenizer`` makes them), 256 pairs a step. sentence-transformers is run with its defaults and with each of its settings
that could help: the cached loss, the sampler without duplicates, loader workers, flash attention where installed. Each
contestant runs in a process of its own, so that peak memory is its own, in interleaved rounds; its median second a
step counts. Ours reads token ids that the pipeline made once; ``ratio_with_tokenizing`` charges it for that as well.
``--clock cpu`` counts the process's own seconds, for a machine that others use as well (then with OMP_NUM_THREADS=1).

The last line is one JSON object: ``ratio`` is our pairs a second (compiled or not) over the fastest peer's,
``ratio_default`` over the peer's defaults, ``ratio_cached`` our GradCache over its fastest cached loss; peak memory in
GiB.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.embedding_trainers import check_equal, prepare, run_ours, run_peer
from benchmarks.exported import SHAPES
from benchmarks.machine import machine


def peer_settings(device: str) -> dict[str, dict[str, Any]]:
    """The peer's contestants: what differs from its defaults."""
    settings: dict[str, dict[str, Any]] = {
        "peer default": {},
        "peer no duplicates": {"sampler": "no_duplicates"},
        "peer cached 32": {"mini_batch_size": 32},
        "peer cached 64": {"mini_batch_size": 64},
    }
    if device == "cuda":
        settings["peer workers"] = {"workers": 4}
        settings["peer compiled"] = {"workers": 4, "compiled": True}
        settings["peer cached 128"] = {"mini_batch_size": 128, "workers": 4}
        if importlib.util.find_spec("flash_attn"):
            settings["peer flash"] = {"attention": "flash_attention_2", "workers": 4}
    return settings


def run_one(args: argparse.Namespace, name: str, work: Path) -> dict[str, float]:
    """One contestant in this process."""
    if name.startswith("ours"):
        seconds = run_ours(args, work, 2 * int(name.split()[-1]) if "cached" in name else None, "compiled" in name)
    else:
        seconds = run_peer(args, work, **peer_settings(args.device)[name])
    if args.device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "memory": memory}


def contestants(args: argparse.Namespace) -> list[str]:
    """Names in the order in which a round runs them."""
    ours = ["ours", "ours cached 32", "ours cached 64"]
    if args.device == "cuda":
        ours += ["ours compiled", "ours cached 128"]
    names = [*ours, *peer_settings(args.device)]
    return [name for name in names if args.contestants is None or name in args.contestants]


def race(args: argparse.Namespace, work: Path) -> dict[str, dict[str, float]]:
    """Median seconds and largest peak memory of each contestant over interleaved rounds."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contestants(args)}
    for _ in range(args.rounds):
        for name, results in found.items():
            command = [
                sys.executable,
                "-m",
                "benchmarks.contrastive",
                *sys.argv[1:],
                "--one",
                name,
                "--work",
                str(work),
            ]
            # Loader workers are forked from a process that has tokenized, and its threads' locks would be theirs.
            workers = "workers" in peer_settings(args.device).get(name, {})
            environment = {**os.environ, "TOKENIZERS_PARALLELISM": str(not workers).lower()}
            try:
                done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=args.timeout)
            except subprocess.TimeoutExpired:
                print(f"{name}: took more than {args.timeout} s and is left out", flush=True)
                continue
            if done.returncode:
                print(done.stderr[-4000:], file=sys.stderr)
                print(f"{name}: failed and is left out", flush=True)
                continue
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {results[-1]['seconds']:.3f} s/step", file=sys.stderr, flush=True)
    return {
        name: {
            "seconds": statistics.median(r["seconds"] for r in results),
            "memory": max(r["memory"] for r in results),
        }
        for name, results in found.items()
        if results
    }


def report(args: argparse.Namespace, results: dict[str, dict[str, float]], facts: dict[str, Any]) -> None:
    """Print the table, and the figures as JSON on the last line."""
    print(f"{'':20} {'s/step':>9} {'pairs/s':>10} {'peak GiB':>9}")
    for name, figures in results.items():
        rate = args.batch_size / figures["seconds"]
        print(f"{name:20} {figures['seconds']:9.3f} {rate:10.1f} {figures['memory']:9.2f}")
    seconds = {name: figures["seconds"] for name, figures in results.items()}
    peers = {name: s for name, s in seconds.items() if name.startswith("peer")}
    best = min(peers, key=peers.__getitem__)
    cached = min(s for name, s in peers.items() if "cached" in name)
    ours_cached = min(s for name, s in seconds.items() if name.startswith("ours cached"))
    ours = min(s for name, s in seconds.items() if name in ("ours", "ours compiled"))
    tokenizing = facts["tokenize_seconds_per_pair"] * args.batch_size
    summary = {
        **facts,
        **machine(),
        "shape": args.shape,
        "precision": args.precision,
        "batch_size": args.batch_size,
        "max_length": args.max_length,
        "pairs_per_second": round(args.batch_size / ours, 1),
        "best_peer": best,
        "ratio": round(peers[best] / ours, 3),
        "ratio_default": round(peers["peer default"] / ours, 3),
        "ratio_cached": round(cached / ours_cached, 3),
        "ratio_with_tokenizing": round(peers[best] / (ours + tokenizing), 3),
        "peak_memory_gib": {name: round(figures["memory"], 2) for name, figures in results.items()},
    }
    print(json.dumps(summary))


def main() -> None:
    parser = argparse.ArgumentParser(description="Contrastive training speed against sentence-transformers.")
    parser.add_argument("--pairs", type=Path, default=Path("data/embedded/pairs.parquet"))
    parser.add_argument("--tokenizer", type=Path, default=Path("data/tokenizer"))
    parser.add_argument("--shape", choices=SHAPES, default=None, help="default: 12x768 on a GPU, 2x256 on a CPU")
    parser.add_argument("--precision", choices=("no", "bf16"), default=None, help="default: bf16 on a GPU, no on a CPU")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--max-pairs", type=int, default=20_000)
    parser.add_argument(
        "--steps", type=int, default=None, help="measured steps a round; default: 20 on a GPU, 4 on a CPU"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds after which a contestant is left out")
    parser.add_argument("--contestants", nargs="+", help="only these (default: all)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.shape = args.shape or ("12x768" if args.device == "cuda" else "2x256")
    args.precision = args.precision or ("bf16" if args.device == "cuda" else "no")
    args.warm = 8 if args.device == "cuda" else 1
    args.steps = args.steps or (20 if args.device == "cuda" else 4)
    if args.one:
        print(json.dumps(run_one(args, args.one, args.work)))
        return
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        facts: dict[str, Any] = prepare(args, work)
        facts["largest_difference"] = check_equal(work, args.device)
        report(args, race(args, work), facts)


if __name__ == "__main__":
    main()
