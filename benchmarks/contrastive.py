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
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

SHAPES = {"2x256": (2, 256, 4, 768), "12x768": (12, 768, 12, 3072), "28x768": (28, 768, 12, 3072)}


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


def prepare(args: argparse.Namespace, work: Path) -> dict[str, float]:
    """Model directory, its export, and tokenised pairs; seconds that tokenising took a pair."""
    from neobert.config.export import ExportConfig
    from neobert.config.model import ModelConfig
    from neobert.contrastive.pairs import write_pairs
    from neobert.contrastive.tokens import add_tokens, load_tokenizer
    from neobert.export.export import build_embedder, choose_layout, write_directory
    from neobert.io import sha256_file, write_manifest
    from neobert.model.heads import MaskedLM
    from neobert.model.storage import EmbeddingInfo, ModelInfo, load_model, save_model
    from neobert.tokenization.tokenizer import open_tokenizer

    _, tokenizer = open_tokenizer(args.tokenizer)
    layers, hidden, heads, intermediate = SHAPES[args.shape]
    config = ModelConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=args.max_length,
    )
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "cls", "sep", "mask", "unk")}
    rows = config.padded_vocab_size(tokenizer.vocab_size)
    sha = sha256_file(args.tokenizer / "tokenizer.json")
    info = ModelInfo(config, rows, max_length=args.max_length, tokenizer_sha256=sha, embedding=EmbeddingInfo(), **ids)
    torch.manual_seed(0)
    save_model(work / "model", MaskedLM(config, rows, tokenizer.pad_token_id).state_dict(), info, args.tokenizer)
    model, info, extra = load_model(work / "model")
    (work / "export").mkdir()
    export = ExportConfig()
    embedder = build_embedder(model, info, extra)
    write_directory(work / "export", work / "model", model, embedder, info, export, choose_layout(export, info))
    pairs = pl.read_parquet(args.pairs).select("query", "corpus").sample(fraction=1.0, shuffle=True, seed=0)
    pairs = pairs.head(args.max_pairs).with_columns(
        negatives=pl.lit([], dtype=pl.List(pl.String)),
        source=pl.lit("embedded"),
        kind=pl.lit(""),
        label=pl.lit(None, dtype=pl.String),
    )
    pairs.select("query", "corpus").write_parquet(work / "texts.parquet")
    start = time.perf_counter()
    tokens = add_tokens(pairs, load_tokenizer(args.tokenizer), "", "", args.max_length, args.max_length)
    seconds = (time.perf_counter() - start) / pairs.height
    write_pairs(work / "pairs" / "train", tokens, [("embedded", "")])
    write_manifest(work / "pairs", {"groups": [["embedded", ""]]})
    return {"tokenize_seconds_per_pair": seconds}


def check_equal(work: Path, device: str) -> float:
    """Largest difference of the embeddings of the exported and the trained model, in fp32."""
    from sentence_transformers import SentenceTransformer

    from neobert.contrastive.pairs import Pairs
    from neobert.model.batch import flatten
    from neobert.model.storage import load_embedding_model

    texts = pl.read_parquet(work / "texts.parquet")["corpus"].head(32).to_list()
    theirs = SentenceTransformer(str(work / "export"), device=device).encode(texts)
    embedder, info = load_embedding_model(work / "model")
    batch = flatten(Pairs(work / "pairs", "train").take(range(32)).positives, info.pad_token_id)
    with torch.no_grad():
        ours = embedder.to(device)(batch.to(device), 32).cpu().numpy()
    difference = float(np.abs(ours - theirs).max())
    if not difference < 1e-3:
        raise SystemExit(f"the embeddings differ by {difference:.2g}: nothing to compare")
    return difference


class Clock:
    """Seconds of each step, taken when the device has finished it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.now = time.process_time if args.clock == "cpu" else time.perf_counter
        self.warm = args.warm
        self.times: list[float] = []

    def __call__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(self.now())

    def seconds(self) -> float:
        """Mean of the steps after the warm ones (steps differ in length, so not their median)."""
        return (self.times[-1] - self.times[self.warm - 1]) / (len(self.times) - self.warm)


def run_ours(args: argparse.Namespace, work: Path, mini_batch_size: int | None, compiled: bool) -> float:
    """Seconds a step of the pipeline's own loop."""
    from neobert.config.optimizer import OptimizerConfig
    from neobert.config.runtime import RuntimeConfig
    from neobert.config.scheduler import SchedulerConfig
    from neobert.config.trainer import LoopConfig
    from neobert.contrastive.batching import Schedule
    from neobert.contrastive.loss import MultipleNegativesRankingLoss
    from neobert.contrastive.objective import ContrastiveModel
    from neobert.contrastive.pairs import Pairs
    from neobert.contrastive.source import MULTIPLE, PairSource
    from neobert.model.storage import load_embedding_model
    from neobert.training.trainer import train

    embedder, info = load_embedding_model(work / "model")
    pairs = Pairs(work / "pairs", "train")
    source = PairSource(
        pairs,
        Schedule(pairs, args.batch_size, {}, 1.0, 0),
        pad_token_id=info.pad_token_id,
        max_negatives=0,
        mini_batch_size=mini_batch_size,
        multiple=MULTIPLE if torch.cuda.is_available() else 1,
    )
    clock = Clock(args)
    with tempfile.TemporaryDirectory() as scratch:
        train(
            ContrastiveModel(embedder.train(), MultipleNegativesRankingLoss(20.0), constraint=clock),
            source,
            trainer=LoopConfig(
                global_batch_size=args.batch_size,
                per_device_train_batch_size=args.batch_size,
                max_steps=args.warm + args.steps,
                mixed_precision=args.precision,
                torch_compile=compiled,
            ),
            optimizer=OptimizerConfig(lr=1e-5),
            scheduler=SchedulerConfig(name="constant"),
            runtime=RuntimeConfig(save_steps=None, logging_steps=1000),
            seed=0,
            scratch=Path(scratch),
            stage="benchmark",
        )
    return clock.seconds()


def run_peer(
    args: argparse.Namespace,
    work: Path,
    sampler: str = "batch_sampler",
    mini_batch_size: int | None = None,
    workers: int = 0,
    attention: str | None = None,
    compiled: bool = False,
) -> float:
    """Seconds a step of ``SentenceTransformerTrainer``."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )
    from transformers import TrainerCallback

    options = {} if attention is None else {"attn_implementation": attention, "dtype": torch.bfloat16}
    model = SentenceTransformer(str(work / "export"), model_kwargs=options)
    texts = pl.read_parquet(work / "texts.parquet")
    data = Dataset.from_dict({"anchor": texts["query"].to_list(), "positive": texts["corpus"].to_list()})
    loss = (
        MultipleNegativesRankingLoss(model)
        if mini_batch_size is None
        else CachedMultipleNegativesRankingLoss(model, mini_batch_size=mini_batch_size)
    )
    clock = Clock(args)

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock()

    with tempfile.TemporaryDirectory() as scratch:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=args.batch_size,
            max_steps=args.warm + args.steps,
            learning_rate=1e-5,
            bf16=args.precision == "bf16",
            torch_compile=compiled,
            use_cpu=not torch.cuda.is_available(),
            batch_sampler=sampler,
            dataloader_num_workers=workers,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=data, loss=loss, callbacks=[Steps()]
        )
        trainer.train()
    return clock.seconds()


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
    return [*ours, *peer_settings(args.device)]


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
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{name}: failed and is left out: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            results.append(json.loads(done.stdout.splitlines()[-1]))
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
        "device": args.device,
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
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        facts: dict[str, Any] = prepare(args, work)
        facts["largest_difference"] = check_equal(work, args.device)
        report(args, race(args, work), facts)


if __name__ == "__main__":
    main()
