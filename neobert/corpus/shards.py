"""Write documents as Parquet shards, train and validation apart by hash of the text.

A shard ends after ``documents_per_shard`` documents or ``SHARD_BYTES`` of text; a training shard also ends where a new
input begins, so that one more input file costs its own shards alone. Files of one document each share shards (a window
of one document packs badly): there a shard begins at documents whose hash says so, so one more file still costs one
shard. Memory: one row group. The bytes depend on the documents alone. Cost: about 100 MB of text a second.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from neobert.errors import PipelineError
from neobert.io import MANIFEST, sha256_file, write_json

log = logging.getLogger(__name__)
SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("text", pa.string())])
ROW_GROUP_BYTES = 4 << 20
SHARD_BYTES = 128 << 20
SPLITS = ("train", "validation")
TOGETHER = 4096  # of so many files of one document each, one begins a shard


class Text(NamedTuple):
    id: str
    source: str
    text: str


def text_number(text: bytes) -> int:
    """A number of 64 bits from the hash of a document, which says where it goes: copies stay together."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


class _Split:
    """The shards of one split, of which one at most is open."""

    def __init__(self, directory: Path, split: str, documents_per_shard: int) -> None:
        self.directory, self.split, self.documents_per_shard = directory, split, documents_per_shard
        self.files: dict[str, dict[str, Any]] = {}
        self.writer: pq.ParquetWriter | None = None
        self.rows: list[Text] = []
        self.pending = self.documents = self.bytes = 0

    def add(self, row: Text, size: int, source: str) -> None:
        self.rows.append(row)
        self.pending += size
        self.bytes += size
        self.documents += 1
        if self.documents >= self.documents_per_shard or self.bytes >= SHARD_BYTES:
            self.close(source)
        elif self.pending >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self.rows:
            return
        if self.writer is None:
            (self.directory / self.split).mkdir(parents=True, exist_ok=True)
            self.name = f"{self.split}/part-{len(self.files):05d}.parquet"
            path = self.directory / self.name
            self.writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=["source"])
        columns = [pa.array(column, pa.string()) for column in zip(*self.rows, strict=True)]
        self.writer.write_table(pa.table(columns, schema=SCHEMA))
        self.rows, self.pending = [], 0

    def close(self, source: str) -> None:
        """End the open shard, if it holds anything; ``source`` is the input that it came from."""
        self._flush()
        if self.writer is not None:
            self.writer.close()
            path = self.directory / self.name
            self.files[self.name] = {
                "documents": self.documents,
                "text_bytes": self.bytes,
                "source": source,
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
            }
        self.writer, self.documents, self.bytes = None, 0, 0


class CorpusWriter:
    """Write ``directory``/{train,validation}/part-*.parquet and, on ``finish``, the manifest.

    ``source`` of ``begin_input`` names what ``dataset.sampling_probs`` may weigh: an entry of ``corpus.files`` or
    ``corpus.hub``. The column ``source`` of a row may be finer (a package, a file).
    """

    def __init__(self, directory: Path, documents_per_shard: int, validation_fraction: float) -> None:
        self.directory, self.fraction = directory, validation_fraction
        self.train = _Split(directory, "train", documents_per_shard)
        self.validation = _Split(directory, "validation", documents_per_shard)
        self.source = ""
        self.documents = 0  # of the present input

    def begin_input(self, source: str) -> None:
        """Say that the next documents come from another input of ``source``."""
        if source != self.source or self.documents > 1:
            self.train.close(self.source)
        self.source, self.documents = source, 0

    def add(self, row: Text) -> None:
        """Add a document to the split that its text's hash says."""
        text = row.text.encode("utf-8")
        number = text_number(text)
        if number < self.fraction * 2**64:
            self.validation.add(row, len(text), self.source)
        else:
            if not self.documents and number % TOGETHER == 0:
                self.train.close(self.source)
            self.train.add(row, len(text), self.source)
        self.documents += 1

    def finish(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Close the shards and write the manifest, last.

        Raises:
            PipelineError: there is no training document at all.
        """
        self.train.close(self.source)
        self.validation.close("")
        if not self.train.files:
            raise PipelineError(
                "corpus: no document came out of the inputs, so there is nothing to train on; "
                "check corpus.source, corpus.files, corpus.text_column and corpus.on_bad_rows"
            )
        if not self.validation.files:
            log.warning("no document fell into validation; raise corpus.validation_fraction to measure its loss")
        files = {**self.train.files, **self.validation.files}
        totals = {
            split: {
                key: sum(info[key] for name, info in files.items() if name.startswith(split + "/"))
                for key in ("documents", "text_bytes")
            }
            for split in SPLITS
        }
        for split in SPLITS:
            (self.directory / split).mkdir(parents=True, exist_ok=True)
        manifest = {**extra, "splits": totals, "files": files}
        write_json(self.directory / MANIFEST, manifest)
        return manifest
