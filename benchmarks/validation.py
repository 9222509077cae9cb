"""Seconds to validate pairs: ``python -m benchmarks.validation``; one million rows should take less than five.

Rows have a query, a positive and two hard negatives; one in a thousand is bad. Timed are pandera's validation of a
frame (``neobert.contrastive.schema``), and all that a source's preprocessing does before it tokenises: reading a
Parquet or JSONL file, column rules, validation, quarantine (``read_source``). CPU seconds add up all threads, for a
machine that others use as well. The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from neobert.config.contrastive_data import ContrastiveDataConfig, PairSource
from neobert.contrastive.preprocess import read_source
from neobert.contrastive.schema import shape_of, validate


def pairs(rows: int, words: int) -> pl.DataFrame:
    """Texts of about ``words`` words; every thousandth query is blank."""
    number, more = pl.int_range(rows), " ".join(f"word{i}" for i in range(words))
    return pl.select(
        query=pl.when(number % 1000 == 77).then(pl.lit(" ")).otherwise(pl.format("query {} of many", number)),
        corpus=pl.format("document {} " + more, number),
        negative=pl.concat_list(pl.format("wrong {} " + more, number), pl.format("other {} " + more, number)),
    )


def timed(rounds: int, call: Callable[[], Any]) -> dict[str, float]:
    """The smallest wall and CPU seconds over the rounds."""
    wall, cpu = [], []
    for _ in range(rounds):
        start = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return {"seconds": round(min(wall), 2), "cpu_seconds": round(min(cpu), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds to validate pairs.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=40, help="words of a document")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    frame = pairs(args.rows, args.words)
    config = ContrastiveDataConfig()
    limits = {"minimum": config.min_characters, "maximum": config.max_characters}
    found: dict[str, dict[str, float]] = {}
    shape = shape_of(frame, "frame")
    found["validation"] = timed(args.rounds, lambda: validate(frame, shape, **limits, where="frame"))
    with tempfile.TemporaryDirectory() as directory:
        paths = {kind: Path(directory) / f"pairs.{kind}" for kind in ("parquet", "jsonl")}
        frame.write_parquet(paths["parquet"])
        frame.write_ndjson(paths["jsonl"])
        for kind, path in paths.items():
            source = PairSource(path=str(path), negative="negative")
            found[f"{kind} and validation"] = timed(args.rounds, lambda s=source: read_source("pairs", s, config))
    print(f"{'':24} {'seconds':>9} {'CPU seconds':>12}")
    for name, figures in found.items():
        print(f"{name:24} {figures['seconds']:9.2f} {figures['cpu_seconds']:12.2f}")
    print(json.dumps({"rows": args.rows, "words": args.words, **found}))


if __name__ == "__main__":
    main()
