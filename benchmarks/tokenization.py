"""Tokenization: the word memo against the Rust tokenizer alone and against `datasets.map`, in CPU-seconds.

``python -m benchmarks.tokenization`` encodes the first 64 MB of the default corpus (``dvc repro tokenizer`` makes it,
and its tokenizer) batch by batch: with an empty memo (`ratio_cold`), again with what it has learned (`ratio_warm`),
and by ``encode_batch_fast`` of the same tokenizer, whose CPU-seconds are the measure; ids are compared one by one.
`ratio_entropy` is the same on random words, hardly one of which comes twice; `ratio_fallback` on a byte-level BPE
tokenizer, for which the memo does not hold. `ratio_datasets_map` compares a shard on disk to a shard on disk:
``datasets.map`` with transformers' tokenizer (three columns) against our shard function with an empty memo. Threads
are off: more of them would add CPU-seconds to Rust's side alone. CPU-seconds count the work whatever else runs.

The last line is one JSON object.
"""

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neobert.config.tokenizer import TokenizerConfig
from neobert.errors import PipelineError
from neobert.tokenization import shard as shards
from neobert.tokenization.encode import Encoder, make_encoder
from neobert.tokenization.tokenizer import open_tokenizer
from neobert.tokenization.train import train_tokenizer

Batches = list[pa.StringArray]


def cpu(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU-seconds of ``run`` and what it returned."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def corpus_batches(corpus: Path, megabytes: float) -> Batches:
    """The first so many megabytes of training text, in the batches that the stage uses."""
    batches: Batches = []
    left = int(megabytes * 1e6)
    for path in sorted((corpus / "train").glob("*.parquet")):
        for batch in shards.text_batches(path):
            if left <= 0:
                return batches
            batches.append(batch)
            left -= size(batch)
    if not batches:
        raise SystemExit(f"error: {corpus}/train holds no text; run `dvc repro tokenizer` first")
    return batches


def size(batch: pa.StringArray) -> int:
    """Bytes of text."""
    return int(pc.sum(pc.binary_length(batch)).as_py() or 0)


def entropy_batches(megabytes: float) -> Batches:
    """Random words of 5 to 12 letters, 64 a document."""
    generator = np.random.default_rng(0)
    words = int(megabytes * 1e6 / 9.5)
    letters = generator.integers(97, 123, (words, 12), dtype=np.uint8).view("S12").ravel().tolist()
    lengths = generator.integers(5, 13, words).tolist()
    cut = [word[:length].decode() for word, length in zip(letters, lengths, strict=True)]
    documents = [" ".join(cut[i : i + 64]) for i in range(0, len(cut), 64)]
    step = int(len(documents) * shards.BATCH_BYTES / (megabytes * 1e6))
    return [pa.array(documents[i : i + step]) for i in range(0, len(documents), step)]


def encode(encoder: Encoder, batches: Batches) -> list[tuple[np.ndarray, np.ndarray]]:
    return [encoder.encode(batch) for batch in batches]


def rust_seconds(tokenizer: Any, batches: Batches) -> float:
    """CPU-seconds of ``encode_batch_fast`` alone: neither making the strings nor reading the ids is counted."""
    seconds = 0.0
    for batch in batches:
        texts = batch.to_pylist()
        seconds += cpu(lambda texts=texts: tokenizer.encode_batch_fast(texts, add_special_tokens=False))[0]
    return seconds


def ids_equal(tokenizer: Any, batches: Batches, encoded: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether every document's ids are the tokenizer's own."""
    for batch, (ids, lengths) in zip(batches, encoded, strict=True):
        expected = [e.ids for e in tokenizer.encode_batch_fast(batch.to_pylist(), add_special_tokens=False)]
        flat = np.fromiter((i for row in expected for i in row), np.int32)
        if lengths.tolist() != [len(row) for row in expected] or not np.array_equal(ids, flat):
            return False
    return True


def memo_figures(folder: Path, batches: Batches, random: Batches) -> dict[str, Any]:
    """Cold, warm and high-entropy ratios, and whether all ids are equal."""
    tokenizer, _ = open_tokenizer(folder)
    encoder = make_encoder(tokenizer)
    cold, encoded = cpu(lambda: encode(encoder, batches))
    warm, again = cpu(lambda: encode(encoder, batches))
    measure = rust_seconds(tokenizer, batches)
    seconds, entropy = cpu(lambda: encode(make_encoder(tokenizer), random))
    same = ids_equal(tokenizer, batches, encoded) and ids_equal(tokenizer, random, entropy)
    same = same and all(np.array_equal(a[0], b[0]) for a, b in zip(encoded, again, strict=True))
    megabytes = sum(map(size, batches)) / 1e6
    return {
        "ids_equal": same,
        "ratio_cold": round(measure / cold, 3),
        "ratio_warm": round(measure / warm, 3),
        "ratio_entropy": round(rust_seconds(tokenizer, random) / seconds, 3),
        "mb_s_cold": round(megabytes / cold, 1),
        "mb_s_warm": round(megabytes / warm, 1),
        "mb_s_rust": round(megabytes / measure, 1),
    }


def fallback_ratio(batches: Batches) -> float:
    """A byte-level BPE tokenizer trained on a little of the text: our encoder against the call alone."""
    sample = [text for batch in batches[:1] for text in batch.to_pylist()][:2000]
    logging.getLogger("neobert.tokenization").setLevel(logging.WARNING)
    tokenizer = train_tokenizer(sample, TokenizerConfig(algorithm="bpe", vocab_size=8000))
    encoder = make_encoder(tokenizer)
    measures = [(rust_seconds(tokenizer, batches), cpu(lambda: encode(encoder, batches))[0]) for _ in range(2)]
    return round(min(rust for rust, _ in measures) / min(ours for _, ours in measures), 3)


def datasets_map_ratio(folder: Path, batches: Batches) -> float:
    """A Parquet shard to Arrow: ``datasets.map`` over ours."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as scratch:
        parquet = Path(scratch) / "shard.parquet"
        pq.write_table(pa.table({"text": pa.chunked_array(batches)}), parquet, row_group_size=4096)
        data = datasets.Dataset.from_parquet(str(parquet), cache_dir=scratch)
        shards._encoder.cache_clear()
        ours, _ = cpu(lambda: shards.tokenize_shard(Path(scratch) / "ours.arrow", str(parquet), str(folder)))

        def encode_columns(rows: dict[str, list[str]]) -> Any:
            return tokenizer(rows["text"], add_special_tokens=False, return_token_type_ids=True)

        theirs, _ = cpu(
            lambda: data.map(encode_columns, batched=True, remove_columns=["text"], load_from_cache_file=False)
        )
    return round(theirs / ours, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("data/corpus"))
    parser.add_argument("--tokenizer", type=Path, default=Path("data/tokenizer"))
    parser.add_argument("--megabytes", type=float, default=64, help="of the corpus to encode")
    parser.add_argument("--others", type=float, default=16, help="megabytes of the other comparisons")
    args = parser.parse_args()
    try:
        open_tokenizer(args.tokenizer)
    except PipelineError as error:
        raise SystemExit(f"error: {error}") from None
    batches, random = corpus_batches(args.corpus, args.megabytes), entropy_batches(args.others)
    some = corpus_batches(args.corpus, args.others)
    figures = memo_figures(args.tokenizer, batches, random)
    figures["ratio_datasets_map"] = datasets_map_ratio(args.tokenizer, some)
    figures["ratio_fallback"] = fallback_ratio(some)
    for name, value in figures.items():
        print(f"{name:20} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
