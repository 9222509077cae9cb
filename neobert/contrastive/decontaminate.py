"""Drop training pairs whose text occurs in an evaluation set.

Texts are compared whole, after lower-casing and collapsing white space: that finds copies, not paraphrases. Cost:
the evaluation texts are held in memory once; one hash join over the pairs.
"""

from pathlib import Path

import polars as pl

from neobert.errors import PipelineError
from neobert.jsonl import parse_line

TEXTS = ("text", "query", "sentence1", "sentence2")
LISTS = ("positive", "negative")


def normalised(text: pl.Expr) -> pl.Expr:
    """The form in which two texts count as the same one."""
    return text.str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()


def evaluation_texts(directories: list[str]) -> pl.Series:
    """All texts of the JSONL files below ``directories``, normalised.

    They are what the columns of ``neobert.evaluation.local_tasks`` hold: ``TEXTS``, ``text`` also with ``title`` before
    it, and the elements of ``LISTS``.

    Raises:
        PipelineError: a directory does not exist, or a line does not parse.
    """
    texts: set[str] = set()
    for directory in directories:
        if not Path(directory).is_dir():
            raise PipelineError(
                f"contrastive_data.decontaminate: {directory!r} is not a directory; make it, or remove it from the list"
            )
        for path in sorted(Path(directory).rglob("*.jsonl")):
            texts.update(_file_texts(path))
    return (
        pl.DataFrame({"text": sorted(texts)}, schema={"text": pl.String})
        .select(normalised(pl.col("text")))["text"]
        .unique()
    )


def _file_texts(path: Path) -> set[str]:
    texts: set[str] = set()
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if line.isspace():
                continue
            try:
                row = parse_line(line)
            except ValueError as error:
                raise PipelineError(
                    f"{path}:{number}: is not valid JSON ({error}); correct or remove the line"
                ) from error
            if not isinstance(row, dict):
                raise PipelineError(f"{path}:{number}: is a JSON {type(row).__name__}, not an object with columns")
            found = [row.get(name) for name in TEXTS]
            found += [text for name in LISTS if isinstance(row.get(name), list) for text in row[name]]
            texts.update(text for text in found if isinstance(text, str) and text.strip())
            if row.get("title") and row.get("text"):
                texts.add(f"{row['title']} {row['text']}")
    return texts


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
