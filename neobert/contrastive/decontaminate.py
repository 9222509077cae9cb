"""Drop training pairs whose text occurs in an evaluation set.

Texts are compared whole, after lower-casing and collapsing white space: that finds copies, not paraphrases. Cost:
the evaluation texts are held in memory once; one hash join over the pairs.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from neobert.errors import PipelineError
from neobert.jsonl import parse_line

log = logging.getLogger(__name__)
TEXTS = ("text", "query", "sentence1", "sentence2")
LISTS = ("positive", "negative")
UNREAD = (".parquet", ".arrow", ".csv", ".ndjson", ".gz", ".zst", ".bz2", ".xz")
"""Endings of files that may hold an evaluation set too, and are not read."""


def normalised(text: pl.Expr) -> pl.Expr:
    """The form in which two texts count as the same one."""
    return text.str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()


def evaluation_texts(directories: list[str]) -> pl.Series:
    """All texts of the JSONL files below ``directories``, normalised; symbolic links are followed.

    They are what the columns of ``neobert.evaluation.local_tasks`` hold: ``TEXTS``, ``text`` also with ``title`` before
    it, and the elements of ``LISTS``.

    Raises:
        PipelineError: a directory does not exist or holds no text, or a line does not parse.
    """
    texts: set[str] = set()
    for directory in directories:
        if not Path(directory).is_dir():
            raise PipelineError(
                f"contrastive_data.decontaminate: {directory!r} is not a directory; make it, or remove it from the list"
            )
        texts |= _directory_texts(directory)
    return (
        pl.DataFrame({"text": sorted(texts)}, schema={"text": pl.String})
        .select(normalised(pl.col("text")))["text"]
        .unique()
    )


def _directory_texts(directory: str) -> set[str]:
    paths = _files(directory)
    texts = {text for path in paths if path.suffix.lower() == ".jsonl" for text in _file_texts(path)}
    unread = [str(path) for path in paths if path.suffix.lower() in UNREAD]
    if not texts:
        found = f" (it has {', '.join(unread[:3])})" if unread else ""
        raise PipelineError(
            f"contrastive_data.decontaminate: {directory!r} holds no text{found}; only JSONL files (.jsonl) are read, "
            f"and of them the columns {', '.join(TEXTS + LISTS)}; convert the evaluation set, or take it off the list"
        )
    if unread:
        log.warning("contrastive_data.decontaminate: not read, as only .jsonl files are: %s", ", ".join(unread))
    return texts


def _files(directory: str) -> list[Path]:
    """All files below, sorted; a directory that is linked to from several places counts once."""
    found: list[Path] = []
    seen = set()  # links may form a loop
    for parent, directories, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            directories.clear()
            continue
        seen.add(real)
        found.extend(Path(parent, name) for name in names)
    return sorted(found)


def _file_texts(path: Path) -> set[str]:
    texts: set[str] = set()
    for row in _objects(path):
        found = [row.get(name) for name in TEXTS]
        found += [text for name in LISTS if isinstance(row.get(name), list) for text in row[name]]
        texts.update(text for text in found if isinstance(text, str) and text.strip())
        if row.get("title") and row.get("text"):
            texts.add(f"{row['title']} {row['text']}")
    return texts


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    try:
        handle = open(path, "rb")  # noqa: SIM115 (closed below; an error of it is not one of the lines')
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror}); restore it, or remove it") from error
    with handle:
        for number, line in enumerate(handle, 1):
            if line.isspace():
                continue
            try:
                row = parse_line(line)
            except (ValueError, RecursionError) as error:
                raise PipelineError(
                    f"{path}:{number}: is not valid JSON ({error}); correct or remove the line"
                ) from error
            if not isinstance(row, dict):
                raise PipelineError(f"{path}:{number}: is a JSON {type(row).__name__}, not an object with columns")
            yield row


def contaminated(frame: pl.DataFrame, texts: pl.Series) -> pl.Series:
    """One boolean a pair: its query, positive or one of its negatives is among ``texts`` (normalised)."""
    known = texts.implode()
    negatives = frame.select(pl.int_range(pl.len()).alias("row"), pl.col("negatives").alias("text")).explode("text")
    guilty = negatives.filter(normalised(pl.col("text")).is_in(known))["row"].unique()
    return frame.select(
        normalised(pl.col("query")).is_in(known)
        | normalised(pl.col("corpus")).is_in(known)
        | pl.int_range(pl.len()).is_in(guilty.implode())
    ).to_series()
