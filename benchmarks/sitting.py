"""A gigabyte of text through tokenize and pack in one sitting: speed, and whether memory stays flat.

``python -m benchmarks.sitting`` writes a corpus of 100 MB and one of 1 GB (the default corpus again and again, with
identifiers altered in each copy so that new words keep coming) and runs both stages on each, in a fresh process with
one worker (so that the small corpus fills its memo too; speeds are a worker's). `peak_mb_*` is the worker's largest
resident memory above that of its imports, which may not grow with the corpus: `peak_ratio` is 10x over 1x.

The last line is one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from neobert.corpus.shards import CorpusWriter, Text

RUN = """
import json, resource, sys, time
from pathlib import Path
from neobert.config.packing import PackingConfig
from neobert.jobs import Engine
from neobert.packing.stage import pack
from neobert.tokenization.stage import tokenize

if __name__ == "__main__":
    root, tokenizer, engine = Path(sys.argv[1]), Path(sys.argv[2]), Engine(workers=int(sys.argv[3]))
    start = time.perf_counter()
    tokenize(root / "corpus", tokenizer, root / "tokens", root / "cache", engine)
    tokenized = time.perf_counter()
    totals = pack(root / "tokens", root / "packed", PackingConfig(max_length=1024), 1, root / "cache", engine)
    packed = time.perf_counter()
    if engine.workers == 1:  # it works in this process; ru_maxrss would count what the parent held when it forked
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    else:
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(json.dumps({"tokenize_s": tokenized - start, "pack_s": packed - tokenized, "peak_mb": peak,
                      "fill": totals["train"]["fill"], "tokens": totals["train"]["tokens"]}))
"""
IMPORTS = """
import neobert.jobs, neobert.packing.pack, neobert.tokenization.shard, neobert.tokenization.memo, pandas
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024)
"""


def documents(corpus: Path, megabytes: int) -> Iterator[Text]:
    """The texts of ``corpus``, copied with altered identifiers until so many megabytes have come."""
    left = megabytes * 1_000_000
    for copy in range(1000):
        for path in sorted((corpus / "train").glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=["id", "text"]):
                    for id_, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                        altered = text.replace("_", f"_x{copy}_") if copy else text
                        left -= len(altered)
                        if left < 0:
                            return
                        yield Text(f"{id_}-{copy}", "copies", altered)


def sitting(corpus: Path, tokenizer: Path, megabytes: int, workers: int, scratch: Path) -> dict[str, Any]:
    """Both stages on so many megabytes, in a process of their own."""
    root = scratch / str(megabytes)
    writer = CorpusWriter(root / "corpus", 32_768, 0.001)
    writer.begin_input("copies")
    for text in documents(corpus, megabytes):
        writer.add(text)
    writer.finish({"source": "copies", "sources": ["copies"]})
    script = scratch / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(root), str(tokenizer.resolve()), str(workers)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment())
    return json.loads(run.stdout)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.getcwd()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("data/corpus"))
    parser.add_argument("--tokenizer", type=Path, default=Path("data/tokenizer"))
    parser.add_argument("--megabytes", type=int, default=1000, help="of the large corpus; the small one is a tenth")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    imports = float(subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True).stdout)
    with tempfile.TemporaryDirectory() as scratch:
        small = sitting(args.corpus, args.tokenizer, args.megabytes // 10, args.workers, Path(scratch))
        large = sitting(args.corpus, args.tokenizer, args.megabytes, args.workers, Path(scratch))
    figures = {
        "tokenize_mb_s": round(args.megabytes / large["tokenize_s"], 1),
        "pack_mtok_s": round(large["tokens"] / large["pack_s"] / 1e6, 1),
        "seconds": round(large["tokenize_s"] + large["pack_s"], 1),
        "fill": large["fill"],
        "imports_mb": round(imports),
        "peak_mb_1x": round(small["peak_mb"] - imports),
        "peak_mb_10x": round(large["peak_mb"] - imports),
        "peak_ratio": round(large["peak_mb"] / small["peak_mb"], 3),
    }
    for name, value in figures.items():
        print(f"{name:16} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
