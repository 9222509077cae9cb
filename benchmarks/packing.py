"""Packing: speed and padding against TRL's `bfd_split`, distance from the bound, time to plan ten million documents.

``python -m benchmarks.packing`` packs one window of 65,536 documents twice, from tokens in memory to rows in memory:
by this package (cutting, planning, filling; CLS and SEP added) and by ``trl.pack_dataset(strategy="bfd_split")`` given
the whole window as one batch (its default of 1000 documents pads more). CPU-seconds are compared, the best of five
rounds in turns, at 1024 tokens a row. Where data/tokens exists, the documents are the default corpus's first, and
`fill` is that of its real windows; `*_synthetic`, and all figures elsewhere, are of log-normal lengths with mean 330,
seeded. TRL is optional (`pip install trl`): without it `ratio_trl` is null.

The last line is one JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from neobert.packing.cut import plan_window, split_documents
from neobert.packing.pack import HEAD, fill_rows, read_tokens
from neobert.packing.plan import plan_rows, rows_lower_bound

WINDOW = 65_536
LENGTH = 1024
SPECIAL = {"pad": 0, "cls": 2, "sep": 3}


def lengths(count: int, seed: int, longest: int) -> np.ndarray:
    """Documents' tokens: log-normal, mean about 320."""
    drawn = np.random.default_rng(seed).lognormal(5.2, 1.1, count)
    return np.clip(drawn, 3, longest).astype(np.int64)


def cpu(run: Callable[[], Any]) -> float:
    """CPU-seconds of ``run``."""
    start = time.process_time()
    run()
    return time.process_time() - start


def against_trl(document: np.ndarray) -> dict[str, Any]:
    """Our CPU-seconds and padding, and TRL's, on documents of so many tokens, from memory to memory."""
    total = int(document.sum())
    tokens = np.random.default_rng(1).integers(5, 30_000, total).astype(np.uint16)
    flat = np.concatenate([np.array([SPECIAL[role] for role in HEAD], np.uint16), tokens])
    made: dict[str, float] = {}

    def ours() -> None:
        window = plan_window(document, LENGTH)
        _, _, segments = fill_rows(flat, *window, LENGTH, 0)
        made["ours"] = 1 - float(segments.sum()) / (window.plan.rows * LENGTH)

    peer = trl_packer(document, tokens, made)
    rounds = [(cpu(ours), cpu(peer) if peer else None) for _ in range(5)]
    best = min(ours for ours, _ in rounds)
    figures = {"mtok_s": round(total / best / 1e6, 1), "padding": round(made["ours"], 6)}
    if peer is None:
        return {**figures, "ratio_trl": None, "padding_trl": None}
    ratio = min(trl for _, trl in rounds if trl is not None) / best
    return {**figures, "ratio_trl": round(ratio, 2), "padding_trl": round(made["trl"], 6)}


def trl_packer(document: np.ndarray, tokens: np.ndarray, made: dict[str, float]) -> Callable[[], None] | None:
    """TRL's packing of the same documents, or ``None`` where TRL is not installed."""
    try:
        import datasets
        from trl import pack_dataset
    except ImportError:
        return None
    datasets.disable_progress_bars()
    # Documents come with their CLS and SEP, as its users give them.
    ends = np.cumsum(document + 2)
    ids = np.full(int(ends[-1]), SPECIAL["cls"], np.uint16)
    ids[ends - 1] = SPECIAL["sep"]
    inner = np.ones(len(ids), bool)
    inner[ends - 1] = inner[ends - document - 2] = False
    ids[inner] = tokens
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    table = pa.table({"input_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))})
    data = datasets.Dataset(datasets.table.InMemoryTable(table))

    def pack() -> None:
        options = {"batch_size": WINDOW, "load_from_cache_file": False, "keep_in_memory": True}
        rows = len(pack_dataset(data, LENGTH, strategy="bfd_split", map_kwargs=options))
        made["trl"] = 1 - len(ids) / (rows * LENGTH)

    return pack


def bins_over_bound() -> float:
    """Rows over the lower bound, the worst of five windows of documents that fit a row."""
    worst = 0.0
    for seed in range(5):
        pieces = lengths(WINDOW, seed, LENGTH - 2) + 2
        worst = max(worst, plan_rows(pieces, LENGTH).rows / rows_lower_bound(pieces, LENGTH))
    return round(worst, 6)


def plan_seconds(documents: int) -> float:
    """Wall seconds to plan ``documents`` that fit a row, as one window."""
    pieces = lengths(documents, 0, LENGTH - 2) + 2
    start = time.perf_counter()
    plan_rows(pieces, LENGTH)
    return round(time.perf_counter() - start, 3)


def corpus_fill(tokens: Path) -> dict[str, dict[str, float]]:
    """By row length, over the real windows in ``tokens``: the share of positions that hold tokens, and of segments more
    than the fewest."""
    shards = [read_tokens(shard)[1] for shard in sorted((tokens / "train").glob("*.arrow"))]
    fills, more = {}, {}
    for length in (128, 256, 512, 1024, 2048):
        windows = [plan_window(shard, length) for shard in shards]
        used = sum(int((window.lengths + 2).sum()) for window in windows)
        fewest = sum(len(split_documents(shard, length - 2).length) for shard in shards)
        if shards:
            fills[str(length)] = round(used / (sum(window.plan.rows for window in windows) * length), 6)
            more[str(length)] = round(sum(len(window.lengths) for window in windows) / fewest - 1, 6)
    return {"fill_by_length": fills, "segments_more_by_length": more}


def corpus_window(tokens: Path) -> np.ndarray:
    """Lengths of the first ``WINDOW`` documents of the default corpus."""
    shards = sorted((tokens / "train").glob("*.arrow"))
    return np.concatenate([read_tokens(shard)[1] for shard in shards])[:WINDOW]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, default=Path("data/tokens"), help="token shards of the default corpus")
    parser.add_argument("--plan-documents", type=int, default=10_000_000)
    args = parser.parse_args()
    corpus = corpus_fill(args.tokens)
    fills = corpus["fill_by_length"]
    figures = against_trl(corpus_window(args.tokens)) if fills else {}
    synthetic = against_trl(lengths(WINDOW, 0, 20_000))
    figures = {**synthetic, **figures, **{f"{name}_synthetic": value for name, value in synthetic.items()}}
    figures |= {
        "fill": fills.get(str(LENGTH), round(1 - figures["padding"], 6)),
        **corpus,
        "bins_over_bound": bins_over_bound(),
        "plan_10m_docs_s": plan_seconds(args.plan_documents),
    }
    for name, value in figures.items():
        print(f"{name:24} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
