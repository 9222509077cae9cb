"""Read packed rows: memory-mapped Arrow shards behind one row index, without a copy.

A shard is trusted by its sha256 in the manifest. A sum is taken once per host and file (remembered by inode, size and
modification time), so that restarts do not read a terabyte again. Cost: opening is a few system calls a shard; a row
is a slice of the mapping.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from neobert.errors import PipelineError
from neobert.io import read_json, read_manifest, sha256_file, write_json

log = logging.getLogger(__name__)


class PackedDataset:
    """The rows of one split (``data/packed/train``).

    Attributes:
        rows: how many.
        max_length: tokens a row (L).
        vocab_size: of the tokenizer; every id is less.
        max_segments: most segments in any row.
        manifest: as written by the pack stage.
        sources: rows of each source, as (first row, one past the last) ranges by name, for ``dataset.sampling_probs``.
    """

    def __init__(self, directory: str | Path, verified: Path | None = None) -> None:
        """Map the shards of ``directory``.

        Args:
            verified: folder to remember verified files in; ``None`` checks sizes only.

        Raises:
            PipelineError: there is no manifest, or a shard is missing, truncated, changed or of other dimensions.
        """
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory)
        self.max_length: int = self.manifest["max_length"]
        self.vocab_size: int = self.manifest["vocab_size"]
        self.max_segments: int = self.manifest["max_segments"]
        self._ids: list[np.ndarray] = []
        self._segments: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        self.sources: dict[str, list[tuple[int, int]]] = {}
        starts = [0]
        for name, entry in sorted(self.manifest["files"].items()):
            path = self.directory / name
            _check(path, entry, verified)
            self._open(path, entry)
            self.sources.setdefault(entry["source"], []).append((starts[-1], starts[-1] + entry["rows"]))
            starts.append(starts[-1] + entry["rows"])
        self._starts = np.array(starts, np.int64)
        self.rows: int = starts[-1]

    def _open(self, path: Path, entry: dict[str, Any]) -> None:
        with pa.memory_map(str(path)) as source:  # the arrays keep the mapping alive
            batch = pa.ipc.open_stream(source).read_next_batch()
        values, lengths = batch.column(0), batch.column(1)
        if values.type.list_size != self.max_length or len(values) != entry["rows"]:
            raise PipelineError(
                f"{path}: holds {len(values)} rows of {values.type.list_size} tokens where the manifest says "
                f"{entry['rows']} of {self.max_length}; delete {self.directory} and run `dvc repro`"
            )
        self._ids.append(view(values.values).reshape(-1, self.max_length))
        self._segments.append(view(lengths.values))
        self._offsets.append(view(lengths.offsets))

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids [L] (uint16 or int32) and segment lengths (int32) of a row; both are views of the mapped file."""
        if not 0 <= index < self.rows:
            raise IndexError(f"row {index} of {self.rows}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        local = index - int(self._starts[shard])
        first, last = self._offsets[shard][local : local + 2]
        return self._ids[shard][local], self._segments[shard][first:last]

    def take(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Ids int32 [R, L] of several rows, copied, and each row's segment lengths."""
        rows = np.asarray(indices, np.int64)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        local = rows - self._starts[shards]
        ids = np.empty((len(rows), self.max_length), np.int32)
        segments: list[np.ndarray] = [np.empty(0, np.int32)] * len(rows)
        for shard in np.unique(shards).tolist():
            here = np.flatnonzero(shards == shard)
            mine = local[here]
            ids[here] = self._ids[shard][mine]
            lengths, offsets = self._segments[shard], self._offsets[shard]
            for place, first, last in zip(
                here.tolist(), offsets[mine].tolist(), offsets[mine + 1].tolist(), strict=True
            ):
                segments[place] = lengths[first:last]
        return ids, segments


def view(array: pa.Array) -> np.ndarray:
    """The values of an Arrow array of numbers without nulls, not copied (``to_numpy`` would import pandas: 0.2 s)."""
    kind = np.dtype(array.type.to_pandas_dtype())
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.empty(0, kind)
    return np.frombuffer(data, kind, len(array), array.offset * kind.itemsize)


def _check(path: Path, entry: dict[str, Any], verified: Path | None) -> None:
    """Raise unless ``path`` is the file that the manifest describes."""
    if not path.is_file():
        raise PipelineError(f"{path}: is in the manifest but missing; delete {path.parent} and run `dvc repro`")
    status = path.stat()
    if status.st_size != entry["bytes"]:
        raise PipelineError(
            f"{path}: has {status.st_size} bytes where the manifest says {entry['bytes']}; "
            f"delete {path.parent} and run `dvc repro`"
        )
    if verified is None:
        return
    mark = verified / f"{entry['sha256'][:32]}.json"
    identity = {"device": status.st_dev, "inode": status.st_ino, "size": status.st_size, "mtime": status.st_mtime_ns}
    if mark.is_file() and read_json(mark) == identity:
        return
    if sha256_file(path) != entry["sha256"]:
        raise PipelineError(
            f"{path}: its sha256 differs from the manifest's (bytes changed on disk); "
            f"delete {path.parent} and run `dvc repro`"
        )
    write_json(mark, identity)
