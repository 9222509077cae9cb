"""What the page shows, read from what the stages left: metrics, histories, manifests, seconds.

Everything is optional: a stage that has not run leaves its part out. Cost: the lengths of the documents are read from
the token shards' list offsets (4 or 8 bytes a document), at most ``DOCUMENTS`` of them.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ruamel.yaml import YAML

DOCUMENTS = 2_000_000


@dataclass(frozen=True)
class Places:
    """Where a pipeline keeps what the page shows."""

    root: Path = Path(".")
    runs: Path = Path("runs")

    def json(self, path: str) -> Any | None:
        """A JSON file below the root, or None where it is not there (yet)."""
        file = self.root / path
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def text(self, path: str) -> str:
        """A text file below the root, or ''."""
        file = self.root / path
        return file.read_text(encoding="utf-8") if file.is_file() else ""


def stages(places: Places) -> list[tuple[str, list[str], float | None]]:
    """(name, outs, seconds of its last run here or None) of each stage, in the order of dvc.yaml."""
    described = YAML(typ="safe", pure=True).load(places.text("dvc.yaml")) or {"stages": {}}
    found = []
    for name, stage in described["stages"].items():
        outs = [next(iter(o)) if isinstance(o, dict) else o for key in ("outs", "metrics") for o in stage.get(key, [])]
        timing = places.runs / "timings" / f"{name}.json"
        seconds = json.loads(timing.read_text())["seconds"] if timing.is_file() else None
        found.append((name, outs, seconds))
    return found


def histories(places: Places) -> dict[str, list[dict[str, float]]]:
    """Training histories by stage: the rows of each reports/<stage>/history.csv, empty cells left out."""
    found = {}
    for name in ("pretrain", "longer_context", "contrastive"):
        path = places.root / "reports" / name / "history.csv"
        if path.is_file():
            with open(path, newline="") as handle:
                found[name] = [_numbers(row) for row in csv.DictReader(handle)]
    return found


def _numbers(row: dict[str, str]) -> dict[str, float]:
    numbers = {}
    for key, value in row.items():
        try:
            numbers[key] = float(value)
        except ValueError:  # an empty cell, or a word: nothing to draw
            continue
    return numbers


def document_lengths(places: Places) -> np.ndarray:
    """Lengths in tokens of the training documents, in shard order, at most ``DOCUMENTS`` of them."""
    found: list[np.ndarray] = []
    for path in sorted((places.root / "data" / "tokens" / "train").glob("*.arrow")):
        if sum(map(len, found)) >= DOCUMENTS:
            break
        with pa.memory_map(str(path)) as source:
            found += [_lengths(batch.column(0)) for batch in pa.ipc.open_stream(source)]
    return np.concatenate(found)[:DOCUMENTS] if found else np.zeros(0, dtype=np.int64)


def _lengths(lists: pa.Array) -> np.ndarray:
    return np.diff(lists.offsets.to_numpy())


def length_classes(lengths: np.ndarray) -> tuple[list[int], list[int]]:
    """(edges, counts) of classes that double: 1, 2 to 3, 4 to 7, ... up to the longest."""
    top = int(np.ceil(np.log2(lengths.max() + 1))) if len(lengths) else 0
    edges = [2**i for i in range(max(top, 1) + 1)]
    return edges, np.histogram(lengths, bins=edges)[0].tolist()


def data_facts(places: Places) -> Iterable[tuple[str, str]]:
    """Figures of corpus, tokenizer, tokens and packed rows, as (what, figure)."""
    corpus, tokens = places.json("data/corpus/manifest.json"), places.json("data/tokens/manifest.json")
    if corpus:
        for split, part in corpus["splits"].items():
            yield f"documents, {split}", f"{part['documents']:,} ({part['text_bytes'] / 1e6:,.1f} MB of text)"
        if corpus.get("skipped_rows"):  # of a user's files or data sets, under corpus.on_bad_rows: skip
            yield "rows skipped", ", ".join(f"{n:,} {reason}" for reason, n in sorted(corpus["skipped_rows"].items()))
    if tokens:
        yield "vocabulary", f"{tokens['tokenizer']['vocab_size']:,} tokens"
        yield "tokens", f"{tokens['tokens']:,}"
    for name in ("packed", "packed_long"):
        for split in ("train", "validation"):
            manifest = places.json(f"data/{name}/{split}/manifest.json")
            if manifest:
                figure = f"{manifest['rows']:,} rows of {manifest['max_length']}, {manifest['fill']:.2%} full"
                yield f"{name}, {split}", figure
