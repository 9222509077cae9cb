"""Reading packed rows: tokens a CPU-second, against `datasets`' torch format, and the time to begin anywhere.

``python -m benchmarks.loader`` writes a shard of random rows (1024 tokens, segments of mean 318) and reads it in the
training's row order, 64 rows at a time, into int32 ids and cumulative segment lengths: by
``neobert.packing.shards.PackedDataset`` (`mtok_s`) and by ``datasets.Dataset.from_file(...).with_format("torch")``
with the same indices (`ratio_datasets_torch`), both on one thread, in CPU-seconds, from the page cache. `seek_ms` is
what a resumed run waits for in a fresh process after its imports: opening the data set, the order at a random position,
and the first 64 rows, by wall clock, the median of five processes.

The last line is one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from neobert.io import sha256_file, write_json
from neobert.packing.order import row_order
from neobert.packing.pack import write_rows
from neobert.packing.shards import PackedDataset

LENGTH, BATCH = 1024, 64

SEEK = """
import sys, time
import numpy as np
from neobert.packing.order import row_order
from neobert.packing.shards import PackedDataset
start = time.perf_counter()
data = PackedDataset(sys.argv[1])
rows, _ = row_order(int(sys.argv[2]), 64, data.rows, 1)
ids, segments = data.take(rows)
np.cumsum(np.concatenate(segments))
print(time.perf_counter() - start)
"""


def write_shards(directory: Path, rows: int, shards: int) -> None:
    """A packed data set of random rows in ``shards`` files."""
    generator = np.random.default_rng(0)
    files: dict[str, Any] = {}
    for number in range(shards):
        ids = generator.integers(5, 30_000, (rows, LENGTH)).astype(np.uint16)
        counts = generator.integers(1, 6, rows)
        segments = np.full(int(counts.sum()), 0, np.int32)
        segments[:] = np.repeat(LENGTH // counts, counts)
        path = directory / f"shard-{number:05d}.arrow"
        write_rows(path, pa.py_buffer(ids), pa.uint16(), LENGTH, counts, segments)
        files[path.name] = {"rows": rows, "source": "one", "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    head = {"max_length": LENGTH, "vocab_size": 30_000, "max_segments": 5}
    write_json(directory / "manifest.json", {**head, "files": files})


def seconds(read: Callable[[np.ndarray], Any], order: np.ndarray) -> float:
    """CPU-seconds to read ``order`` in batches."""
    start = time.process_time()
    for first in range(0, len(order), BATCH):
        read(order[first : first + BATCH])
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16_384, help="rows a file (32 MiB)")
    parser.add_argument("--shards", type=int, default=4)
    args = parser.parse_args()
    import datasets
    import torch

    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_shards(folder, args.rows, args.shards)
        data = PackedDataset(folder)
        order, _ = row_order(0, data.rows, data.rows, 1)

        def ours(rows: np.ndarray) -> None:
            ids, segments = data.take(rows)
            torch.from_numpy(ids)
            torch.from_numpy(np.cumsum(np.concatenate(segments), dtype=np.int32))

        files = [datasets.Dataset.from_file(str(path)) for path in sorted(folder.glob("*.arrow"))]
        peer = datasets.concatenate_datasets(files).with_format("torch")

        def theirs(rows: np.ndarray) -> None:
            batch = peer[rows.tolist()]
            batch["input_ids"].to(torch.int32)
            torch.cat(list(batch["seq_lengths"])).cumsum(0, dtype=torch.int32)

        some = order[: 32 * BATCH]
        seconds(ours, order)
        seconds(theirs, some[:BATCH])
        mine, other = [], []
        for _ in range(5):
            mine.append(seconds(ours, order) / len(order))
            other.append(seconds(theirs, some) / len(some))
        seeks = []
        for number in range(5):
            position = str(data.rows * 7 + 12_345 * number)
            run = subprocess.run([sys.executable, "-c", SEEK, str(folder), position], capture_output=True, check=True)
            seeks.append(1000 * float(run.stdout))
    figures = {
        "mtok_s": round(LENGTH / min(mine) / 1e6, 1),
        "mtok_s_datasets_torch": round(LENGTH / min(other) / 1e6, 1),
        "ratio_datasets_torch": round(min(other) / min(mine), 2),
        "seek_ms": round(statistics.median(seeks), 2),
        "seek_ms_worst": round(max(seeks), 2),
    }
    for name, value in figures.items():
        print(f"{name:24} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
