"""The contestants of ``benchmarks.contrastive``: one model and its pairs, trained by this pipeline and by its peer.

``args`` are that program's. Heavy imports are inside the functions: each contestant has a process of its own.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch


def prepare(args: argparse.Namespace, work: Path) -> dict[str, float]:
    """Model directory, its export, and tokenised pairs; seconds that tokenising took a pair."""
    from benchmarks.exported import SHAPES, write_export
    from neobert.config.model import ModelConfig
    from neobert.contrastive.pairs import write_pairs
    from neobert.contrastive.tokens import add_tokens, load_tokenizer
    from neobert.io import sha256_file, write_manifest
    from neobert.model.heads import MaskedLM
    from neobert.model.storage import EmbeddingInfo, ModelInfo, save_model
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
    write_export(work / "model", work / "export")
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
