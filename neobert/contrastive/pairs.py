"""Pairs on disk: Parquet with the texts for people and tools, Arrow IPC with the token ids for training.

The Arrow files are uncompressed and memory-mapped, so ranks of one host share their pages and a batch costs only its
own tokens. A part holds ``PART_ROWS`` pairs; the row ``i`` of a split is row ``i % PART_ROWS`` of part
``i // PART_ROWS``. Groups, the (source, kind) that a batch is drawn from, are numbered in the manifest.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from neobert.errors import PipelineError
from neobert.io import atomic_path, read_manifest

PART_ROWS = 65_536
TEXTS = ["query", "corpus", "negatives", "source", "kind", "label"]


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Atomically, with pyarrow, whose bytes do not depend on the number of threads."""
    with atomic_path(path) as temporary:
        pq.write_table(frame.to_arrow(), temporary, compression="zstd", row_group_size=PART_ROWS)


def write_pairs(directory: Path, pairs: pl.DataFrame, groups: Sequence[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Write the parts of one split; returns rows and tokens by file name (relative to the parent directory)."""
    numbers = pl.DataFrame(
        {
            "source": [source for source, _ in groups],
            "kind": [kind for _, kind in groups],
            "group": pl.Series(range(len(groups)), dtype=pl.Int32),
        },
        schema_overrides={"source": pl.String, "kind": pl.String},
    )
    pairs = pairs.join(numbers, on=["source", "kind"], how="left", maintain_order="left")
    files = {}
    for number, start in enumerate(range(0, max(pairs.height, 1), PART_ROWS)):
        part = pairs.slice(start, PART_ROWS).rechunk()
        write_parquet(directory / f"part-{number:05d}.parquet", part.select(TEXTS))
        ids = part.select("query_ids", "corpus_ids", "negative_ids", "hashes", "class", "group").to_arrow()
        path = directory / f"part-{number:05d}.arrow"
        with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), ids.schema) as writer:
            writer.write_table(ids.combine_chunks(), max_chunksize=PART_ROWS)
        tokens = part.select(pl.col("query_ids").list.len().sum() + pl.col("corpus_ids").list.len().sum()).item()
        files[f"{directory.name}/{path.name}"] = {"rows": part.height, "tokens": int(tokens)}
    return files


class Texts(NamedTuple):
    """Token ids of some pairs: one array a query and positive, a list of arrays a pair's negatives."""

    queries: list[np.ndarray]
    positives: list[np.ndarray]
    negatives: list[list[np.ndarray]]


class _Ragged(NamedTuple):
    values: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]
        return self.values[self.offsets[i] : self.offsets[i + 1]]


def _ragged(array: pa.LargeListArray) -> tuple[pa.Array, np.ndarray]:
    return array.values, array.offsets.to_numpy()


class _Part:
    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        columns = {name: table.column(name).combine_chunks() for name in table.column_names}
        self.queries = self._column(columns["query_ids"])
        self.positives = self._column(columns["corpus_ids"])
        lists, self.negative_offsets = _ragged(columns["negative_ids"])
        self.negatives = self._column(lists)
        self.hashes = self._column(columns["hashes"])
        self.classes = columns["class"].to_numpy().view(np.int64)
        self.groups = columns["group"].to_numpy()

    @staticmethod
    def _column(array: pa.LargeListArray) -> _Ragged:
        values, offsets = _ragged(array)
        return _Ragged(values.to_numpy(), offsets)


class Pairs:
    """The tokenised pairs of one split, memory-mapped.

    Attributes:
        rows: number of pairs.
        groups: [rows] int32, the group of each pair.
        classes: [rows] int64, equal where two pairs are positives of each other (same label, else same query).
        sources: source of each group.
        names: ``source/kind`` of each group, for people: a source's name may hold a slash.
        manifest: the manifest of the whole directory (tokenizer, prompts, lengths).

    Raises:
        PipelineError: the directory was never finished.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        directory = Path(directory)
        self.manifest: dict[str, Any] = read_manifest(directory)
        paths = sorted((directory / split).glob("part-*.arrow"))
        if not paths:
            raise PipelineError(f"{directory / split}: has no pairs; run `dvc repro contrastive_preprocess`")
        self.parts = [_Part(path) for path in paths]
        self.groups = np.concatenate([part.groups for part in self.parts])
        self.classes = np.concatenate([part.classes for part in self.parts])
        self.sources = [source for source, _ in self.manifest["groups"]]
        self.names = ["/".join(filter(None, group)) for group in self.manifest["groups"]]
        self.rows = len(self.groups)

    def hashes(self, row: int) -> np.ndarray:
        """uint64 identities of the pair's texts: query, positive, negatives."""
        return self.parts[row // PART_ROWS].hashes[row % PART_ROWS]

    def texts_of(self, group: int, skip: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(row, identity of a text of it) of a group, flat, part by part; the first ``skip`` of a row are left out."""
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(part.groups == group)
            values, offsets = part.hashes
            counts = np.diff(offsets)[rows] - skip
            starts = offsets[rows] + skip - (np.cumsum(counts) - counts)
            where = np.repeat(starts, counts) + np.arange(counts.sum())
            yield np.repeat(rows + number * PART_ROWS, counts), values[where]

    def negative_counts(self) -> np.ndarray:
        """[rows] number of negatives of every pair."""
        return np.concatenate([np.diff(part.negative_offsets) for part in self.parts])

    def take(self, rows: Sequence[int] | np.ndarray, max_negatives: int | None = None) -> Texts:
        """The pairs at ``rows``, each with at most its first ``max_negatives`` negatives."""
        texts = Texts([], [], [])
        for row in np.asarray(rows).tolist():
            part, i = self.parts[row // PART_ROWS], row % PART_ROWS
            first, last = part.negative_offsets[i], part.negative_offsets[i + 1]
            if max_negatives is not None:
                last = min(last, first + max_negatives)
            texts.queries.append(part.queries[i])
            texts.positives.append(part.positives[i])
            texts.negatives.append([part.negatives[n] for n in range(first, last)])
        return texts
