"""Write documents as Parquet shards, train and validation apart by hash of the text.

A shard ends after ``documents_per_shard`` documents or ``SHARD_BYTES`` of text. A training shard also ends with each
source and with each input file that is large enough, so that one more file costs its own shards alone. Smaller files
share shards (a window of few documents packs badly): each ends its shard with a probability in proportion to its size,
which the hash of its documents decides, and the limits count anew in each. So no cut depends on another file, and one
more costs about one shard beside its own, wherever it sorts; ending what is large enough would move every later cut.
Memory: one row group. The bytes depend on the documents alone. Cost: about 100 MB of text a second.
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
# An input of so many documents, or of so much text, always ends its shard; a smaller one in proportion, so this is also
# the mean of shards of small files. Either packs to 0.98 and more of its rows. Both lie well below the limits of a
# shard, which small files then seldom meet: a cut there depends on where the shard began.
TOGETHER = 4096
TOGETHER_BYTES = SHARD_BYTES // 4


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
        self.documents_per_shard = documents_per_shard
        self.train = _Split(directory, "train", documents_per_shard)
        self.validation = _Split(directory, "validation", documents_per_shard)
        self.source = ""
        self._reset()

    def _reset(self) -> None:
        # Of the present input's training documents; number: the sum of their hashes; uncut: since its last cut.
        self.documents = self.bytes = self.number = 0
        self.uncut_documents = self.uncut_bytes = 0

    def begin_input(self, source: str) -> None:
        """Say that the next documents come from another input of ``source``."""
        share = max(self.documents / TOGETHER, self.bytes / TOGETHER_BYTES)
        # By the low bits: the high ones of a training document are those that did not send it to validation.
        if source != self.source or self.number % 2**32 < share * 2**32:
            self.train.close(self.source)
        self.source = source
        self._reset()

    def add(self, row: Text) -> None:
        """Add a document to the split that its text's hash says."""
        text = row.text.encode("utf-8")
        number = text_number(text)
        if number < self.fraction * 2**64:
            self.validation.add(row, len(text), self.source)
        else:
            self.train.add(row, len(text), self.source)
            self._count(len(text), number)

    def _count(self, size: int, number: int) -> None:
        self.number += number
        self.documents += 1
        self.bytes += size
        self.uncut_documents += 1
        self.uncut_bytes += size
        # The open shard may have begun in an earlier input and met a limit before: a large file would else be cut
        # elsewhere for each document more in a small one before it.
        if self.uncut_documents >= self.documents_per_shard or self.uncut_bytes >= SHARD_BYTES:
            self.train.close(self.source)
            self.uncut_documents = self.uncut_bytes = 0

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
