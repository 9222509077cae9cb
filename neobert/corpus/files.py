"""Documents from JSONL, Parquet and text files: local globs or fsspec URLs (s3://, gs://, https://, ...).

Files are read in sorted order, one at a time, as streams: memory stays at a line, a row group's batch or
``corpus.max_document_bytes``, whatever the size of a file. Errors name file and line (rows of Parquet count from 1).
Cost: about 100 MB of JSONL a second.
"""

import io
import json
import lzma
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from neobert.corpus.rows import Rows
from neobert.corpus.shards import Text
from neobert.errors import PipelineError

JSONL, PARQUET, TEXT = {".jsonl", ".ndjson", ".json"}, {".parquet"}, {".txt", ".text", ".md", ".rst"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
READ_BATCH = 1024
READ_BYTES = 1 << 20
# How a local file that is damaged, cut short or not readable shows itself.
DAMAGE = (OSError, EOFError, pa.ArrowException, zlib.error, lzma.LZMAError)


class InputFile(NamedTuple):
    source: str  # the entry of corpus.files
    filesystem: fsspec.AbstractFileSystem
    path: str
    name: str  # of it in ids and messages
    suffix: str
    compression: str | None

    def open(self) -> BinaryIO:
        """The file's bytes, decompressed, read as Python's own files are; those of Parquet can be sought in."""
        if self.compression is None and self.suffix not in PARQUET:
            # A remote file of fsspec reads lines of any length only, and may return less than what was asked for.
            raw = self.filesystem.open(self.path, "rb")
            return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, raw), READ_BYTES))
        if self.compression != "zstd":
            return fsspec.core.OpenFile(self.filesystem, self.path, "rb", compression=self.compression).open()
        # fsspec's zstd needs a further package. Arrow's does not, but only reads on: Parquet goes to a temporary file.
        stream = pa.CompressedInputStream(pa.PythonFile(self.filesystem.open(self.path, "rb"), "r"), "zstd")
        plain = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream)))
        if self.suffix not in PARQUET:
            return plain
        whole = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (the caller's)
        with plain:
            shutil.copyfileobj(plain, whole)
        whole.seek(0)
        return whole


def find_files(patterns: list[str]) -> list[InputFile]:
    """The files that ``patterns`` name: patterns in the order given, the files of each sorted, none twice.

    Raises:
        PipelineError: a pattern matches nothing, cannot be listed, or a file's ending says no known format.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        try:
            filesystem, path = fsspec.core.url_to_fs(pattern)
            paths, directories = _matches(filesystem, path)
        except Exception as error:  # every file system raises kinds of its own; each is about this entry
            raise PipelineError(
                f"corpus.files: {pattern!r} cannot be read ({_first_line(error)}); check the path and, for a URL, the "
                "network and your credentials"
            ) from error
        _check_matches(pattern, paths, directories)
        for path in paths:
            found.setdefault(path, _input_file(pattern, filesystem, path))
    return list(found.values())


def _matches(filesystem: fsspec.AbstractFileSystem, path: str) -> tuple[list[str], list[str]]:
    """Files and directories that ``path`` names: itself, where there is such a file, else what it matches as a glob."""
    if "*" not in path and filesystem.isfile(path):  # a name may hold brackets, a URL a question mark
        return [path], []
    matches = filesystem.glob(path, detail=True)
    directories = {name for name, info in matches.items() if info["type"] != "file" and filesystem.isdir(name)}
    return sorted(matches.keys() - directories), sorted(directories)


def _check_matches(pattern: str, paths: list[str], directories: list[str]) -> None:
    """Refuse an entry without files, and one that matches a directory of data (as Spark writes) but not its files."""
    for directory in directories:
        suffix = PurePosixPath(directory).suffix
        named = not paths or suffix in JSONL | PARQUET | TEXT
        if named and not any(path.startswith(directory.rstrip("/") + "/") for path in paths):
            raise PipelineError(
                f"corpus.files: {pattern!r} matches the directory {directory!r} and none of its files; name the "
                f"files, as in '{directory}/*{suffix or '.jsonl'}'"
            )
    if not paths:
        hint = " ([[] stands for a bracket in a name)" if "[" in pattern else ""
        raise PipelineError(f"corpus.files: {pattern!r} matches no file; give an existing path, glob or URL{hint}")


def _input_file(pattern: str, filesystem: fsspec.AbstractFileSystem, path: str) -> InputFile:
    pure = PurePosixPath(urlsplit(path).path if "://" in path else path)  # a URL's query has endings of its own
    compression = COMPRESSIONS.get(pure.suffix.lower())
    suffix = PurePosixPath(pure.stem).suffix.lower() if compression else pure.suffix.lower()
    if suffix not in JSONL | PARQUET | TEXT:
        known = ", ".join(sorted(JSONL | PARQUET | TEXT))
        raise PipelineError(
            f"corpus.files: {path!r} (from {pattern!r}) has none of the endings {known} "
            f"(each also with {', '.join(COMPRESSIONS)}); rename it or narrow the pattern"
        )
    return InputFile(pattern, filesystem, path, _name(pattern, filesystem, path), suffix, compression)


def _name(pattern: str, filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """``path``; of a local file relative to the working directory where it lies below that or the entry is relative.

    Ids are in the shards' bytes, which must be the same in every checkout of the same data.
    """
    if not isinstance(filesystem, LocalFileSystem):
        return path
    relative = Path(os.path.relpath(path)).as_posix()
    absolute = pattern.startswith(("/", "~")) or "://" in pattern
    return path if absolute and relative.startswith("../") else relative


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def read_files(patterns: list[str], rows: Rows, text_documents: str) -> Iterator[tuple[str, Iterable[Text]]]:
    """For each file, its source and its documents. All patterns are checked before the first file is read.

    Args:
        text_documents: what a document of a text file is: ``file``, ``paragraph`` or ``line``.

    Raises:
        PipelineError: as ``find_files``; a bad row under ``on_bad_rows: fail``; a file that cannot be read.
    """
    for file in find_files(patterns):
        yield file.source, _read(file, rows, text_documents)


def _read(file: InputFile, rows: Rows, text_documents: str) -> Iterator[Text]:
    try:
        if file.suffix in PARQUET:
            values = _parquet(file, rows)
        elif file.suffix in JSONL:
            values = _jsonl(file, rows)
        else:
            values = _text(file, rows, text_documents)
        for number, value in values:
            text = rows.text(value, f"{file.name}:{number}")
            if text is not None:
                yield Text(f"{file.name}:{number}", file.source, text)
    except PipelineError:
        raise
    except Exception as error:
        # A remote file system raises kinds of its own; with a local file, all but damage is a fault of this code.
        if isinstance(file.filesystem, LocalFileSystem) and not isinstance(error, DAMAGE):
            raise
        raise PipelineError(f"{file.name}: cannot be read: {_first_line(error)}") from error


def _lines(handle: BinaryIO, rows: Rows, path: str, limit: int) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; one longer than ``limit`` bytes is refused without being held in memory."""
    number = 0
    while line := handle.readline(limit + 1):
        number += 1
        if len(line) > limit:
            rows.too_long(f"{path}:{number}")
            while line and not line.endswith(b"\n"):
                line = handle.readline(limit + 1)
            continue
        yield number, line


def _decode(data: bytes, rows: Rows, where: str) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        rows.bad(where, "not UTF-8", f"is not UTF-8 (byte {error.start} is 0x{data[error.start]:02x})")
        return None


def _jsonl(file: InputFile, rows: Rows) -> Iterator[tuple[int, Any]]:
    # JSON may write one byte of text as six (\u0000), and other columns come on top.
    limit = 8 * rows.max_bytes + (1 << 20)
    with file.open() as handle:
        for number, line in _lines(handle, rows, file.name, limit):
            where = f"{file.name}:{number}"
            decoded = _decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, rows, where)
            if decoded is None or not decoded.strip():
                continue
            try:
                row = json.loads(decoded)
            except ValueError as error:
                rows.bad(where, "not JSON", f"is not JSON ({error})")
                continue
            except RecursionError:
                rows.bad(where, "nested too deeply", "holds JSON nested too deeply to be parsed")
                continue
            if not isinstance(row, dict):
                rows.bad(where, "not an object", f"is {type(row).__name__}, not a JSON object with {rows.column!r}")
            elif rows.column not in row:
                keys = ", ".join(map(repr, row)) or "none"
                rows.bad(where, "no text column", f"has no column {rows.column!r} (corpus.text_column); it has {keys}")
            else:
                yield number, row[rows.column]


def _parquet(file: InputFile, rows: Rows) -> Iterator[tuple[int, Any]]:
    with file.open() as handle:
        table = pq.ParquetFile(handle)
        schema = table.schema_arrow
        if rows.column not in schema.names:
            raise PipelineError(
                f"{file.name}: has no column {rows.column!r} (corpus.text_column); it has {', '.join(schema.names)}"
            )
        declared = schema.field(rows.column).type
        kind = declared.value_type if pa.types.is_dictionary(declared) else declared
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise PipelineError(f"{file.name}: column {rows.column!r} (corpus.text_column) is {declared}, not string")
        number = 0
        for batch in table.iter_batches(batch_size=READ_BATCH, columns=[rows.column]):
            column = batch.column(0)
            for scalar in column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column:
                number += 1
                try:
                    value = scalar.as_py()
                except UnicodeDecodeError as error:
                    rows.bad(f"{file.name}:{number}", "not UTF-8", f"is not UTF-8 ({error.reason})")
                    continue
                yield number, value


def _text(file: InputFile, rows: Rows, text_documents: str) -> Iterator[tuple[int, Any]]:
    with file.open() as handle:
        if text_documents == "file":
            data = handle.read(rows.max_bytes + 1)
            if len(data) > rows.max_bytes:
                rows.too_long(f"{file.name}:1")
                return
            decoded = _decode_lines(data, rows, file.name)
            if decoded is not None:
                yield 1, decoded
            return
        lines = (
            (number, decoded)
            for number, line in _lines(handle, rows, file.name, rows.max_bytes + 2)
            if (decoded := _decode(line, rows, f"{file.name}:{number}")) is not None
        )
        if text_documents == "line":
            yield from ((number, line.rstrip("\r\n")) for number, line in lines if line.strip())
        else:
            yield from _paragraphs(lines, rows, file.name)


def _paragraphs(lines: Iterator[tuple[int, str]], rows: Rows, path: str) -> Iterator[tuple[int, str]]:
    """Runs of lines that are not blank; one that outgrows the limit is refused without being held in memory."""
    paragraph: list[str] | None = []  # None: this one is refused
    first = size = 0
    for number, line in lines:
        if not line.strip():
            if paragraph:
                yield first, "".join(paragraph).rstrip()
            paragraph, size = [], 0
        elif paragraph is not None:
            if not paragraph:
                first, line = number, line.lstrip()
            # Characters, without the end of the line: at most the bytes, which are counted at the end.
            if size + len(line.rstrip()) > rows.max_bytes:
                rows.too_long(f"{path}:{first}")
                paragraph = None
            else:
                paragraph.append(line)
                size += len(line)
    if paragraph:
        yield first, "".join(paragraph).rstrip()


def _decode_lines(data: bytes, rows: Rows, path: str) -> str | None:
    """A whole file's text; an error names the line that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _decode(data, rows, f"{path}:{data.count(bytes([10]), 0, error.start) + 1}")
