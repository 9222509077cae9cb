"""Encoding speed against ``SentenceTransformer.encode``: same weights, same texts, same precision, same device.

``python -m benchmarks.encode`` builds an encoder with random weights (or takes ``--model DIR``), exports it, checks
that both libraries give the same embeddings, and times both over naturally varied texts: functions and docstring
lines of the standard library, tokenisation included. sentence-transformers is timed at every batch size of 32 to 1024
and at its default; each contestant's best of ``--repeats`` interleaved rounds counts, so that a busy moment of the
machine does not decide. ``--clock cpu`` counts the process's own seconds, for a machine that others use as well
(then one thread, as waiting threads count too). The last line is one JSON object: ``ratio`` is our texts a second
over theirs at their best batch size, ``ratio_default`` over theirs at their default.
"""

import argparse
import ast
import json
import os
import random
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.exported import SHAPES, write_export
from benchmarks.machine import machine
from neobert.config.model import ModelConfig
from neobert.errors import PipelineError
from neobert.evaluation.encode import TextEncoder
from neobert.model.heads import MaskedLM
from neobert.model.storage import EmbeddingInfo, ModelInfo, load_embedding_model, save_model

BATCH_SIZES = (32, 64, 128, 256, 512, 1024)
DEFAULT = 32
TAKES = "an embedding model's directory of this pipeline, such as models/contrastive"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def standard_library() -> Iterator[str]:
    """Functions of the standard library and the first lines of their docstrings."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = path.read_text(encoding="utf-8", errors="ignore")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                yield ast.get_source_segment(source, node) or ""
                yield (ast.get_docstring(node) or "no docstring").splitlines()[0]


def natural_texts(count: int) -> list[str]:
    """``count`` of them in a fixed random order, repeated when there are fewer."""
    found = [text for text in standard_library() if text]
    random.Random(0).shuffle(found)
    return [found[i % len(found)] for i in range(count)]


def build_tokenizer(directory: Path, texts: list[str], max_length: int) -> int:
    """Train a WordPiece tokenizer on ``texts`` and return its size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    rust = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    rust.normalizer, rust.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    rust.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=31_000, special_tokens=SPECIALS, show_progress=False)
    )
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, model_max_length=max_length, **names)
    tokenizer.save_pretrained(directory)
    return len(tokenizer)


def build_model(directory: Path, shape: str, texts: list[str], max_length: int) -> None:
    """A model directory with random weights."""
    size = build_tokenizer(directory.parent / "tokenizer", texts, max_length)
    layers, hidden, heads, intermediate = SHAPES[shape]
    config = ModelConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=max_length,
    )
    rows = config.padded_vocab_size(size)
    info = ModelInfo(config, rows, 0, 2, 3, 4, 1, max_length, "benchmark", EmbeddingInfo("mean", True))
    torch.manual_seed(0)
    save_model(directory, MaskedLM(config, rows, 0).state_dict(), info, directory.parent / "tokenizer")


def contestants(
    model: Path, scratch: Path, device: str, dtype: torch.dtype
) -> tuple[TextEncoder, dict[int, Callable[[list[str]], np.ndarray]]]:
    """Our encoder, and sentence-transformers' encode at each batch size, over the weights of ``model``."""
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    write_export(model, scratch / "export")
    theirs = SentenceTransformer(str(scratch / "export"), device=device, model_kwargs={"dtype": dtype})
    embedder, info = load_embedding_model(model)
    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    ours = TextEncoder(embedder, tokenizer, max_length=info.max_length, device=device, dtype=dtype)

    def at(size: int) -> Callable[[list[str]], np.ndarray]:
        return lambda texts: theirs.encode(texts, batch_size=size, show_progress_bar=False)

    return ours, {size: at(size) for size in BATCH_SIZES}


def measure(
    ours: TextEncoder, theirs: dict[int, Callable], texts: list[str], repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Best seconds of each contestant over interleaved rounds."""
    runs: dict[str, Callable] = {"ours": ours.encode}
    runs |= {f"batch size {size}": encode for size, encode in theirs.items()}
    best = dict.fromkeys(runs, float("inf"))
    for encode in runs.values():
        encode(texts[: max(64, len(texts) // 10)])
    for _ in range(repeats):
        for name, encode in runs.items():
            start = clock()
            encode(texts)  # the result is on the host, so the device has finished
            best[name] = min(best[name], clock() - start)
            print(f"{name}: {best[name]:.3f} s", file=sys.stderr, flush=True)
    return best


def check_equal(ours: TextEncoder, theirs: Callable, texts: list[str], dtype: torch.dtype) -> float:
    """Largest difference of the embeddings; raises where they are not the same model's."""
    difference = float(np.abs(ours.encode(texts) - theirs(texts)).max())
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    if not difference <= limit:
        raise SystemExit(f"the embeddings differ by {difference:.2g}, more than {limit:g}: nothing to compare")
    return difference


def report(best: dict[str, float], texts: int, tokens: int, facts: dict) -> None:
    """Print the table, and the figures as JSON on the last line."""
    print(f"{'':16} {'seconds':>9} {'texts/s':>10} {'tokens/s':>12}")
    for name, seconds in best.items():
        print(f"{name:16} {seconds:9.3f} {texts / seconds:10.0f} {tokens / seconds:12.0f}")
    theirs = {name: seconds for name, seconds in best.items() if name != "ours"}
    fastest = min(theirs, key=theirs.__getitem__)
    figures = {
        **facts,
        "texts": texts,
        "tokens": tokens,
        "ratio": round(theirs[fastest] / best["ours"], 3),
        "ratio_default": round(theirs[f"batch size {DEFAULT}"] / best["ours"], 3),
        "best_batch_size": int(fastest.split()[-1]),
        "ours_tokens_per_second": round(tokens / best["ours"]),
    }
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description="Encoding speed against sentence-transformers.")
    parser.add_argument("--model", type=Path, help=f"{TAKES} (default: random weights of --shape)")
    parser.add_argument("--shape", choices=SHAPES, default=None, help="default: 28x768 on a GPU, 2x256 on a CPU")
    parser.add_argument("--texts", type=int, default=None, help="default: 20000 on a GPU, 500 on a CPU")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default=None, help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype or ("bf16" if device == "cuda" else "fp32")]
    shape = args.shape or ("28x768" if device == "cuda" else "2x256")
    texts = natural_texts(args.texts or (20_000 if device == "cuda" else 500))
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or Path(scratch) / "model"
        if args.model is None:
            build_model(model, shape, texts[:5000], args.max_length)
        try:
            ours, theirs = contestants(model, Path(scratch), device, dtype)
        except PipelineError as error:
            raise SystemExit(f"error: --model: {error}; it takes {TAKES}") from None
        lengths = [len(ids) for ids in ours.tokenize(texts)]
        difference = check_equal(ours, theirs[DEFAULT], texts[:64], dtype)
        print(f"{len(texts)} texts of {min(lengths)} to {max(lengths)} tokens, mean {np.mean(lengths):.0f}, {device}")
        clock = time.process_time if args.clock == "cpu" else time.perf_counter
        best = measure(ours, theirs, texts, args.repeats, clock)
    facts = {**machine(), "shape": str(args.model or shape), "dtype": str(dtype), "largest_difference": difference}
    report(best, len(texts), sum(lengths), facts)


if __name__ == "__main__":
    main()
