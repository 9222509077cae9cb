"""Read the tables of hub sources through ``datasets``, into polars.

A table is downloaded once by ``datasets`` (its cache is HF_HOME's) and then held in memory while its source is
processed. Its fingerprint, which covers name, configuration, split and revision, keys our own cache.
"""

import os

import polars as pl

from neobert.config.contrastive_data import PairSource
from neobert.contrastive.columns import roots
from neobert.contrastive.hub_sources import HUB_SOURCES, Part, Table
from neobert.errors import PipelineError
from neobert.network import probe_hub


def parts_of(source: PairSource) -> tuple[Part, ...]:
    """The tables of a hub source: the documents' own by name, any other data set with the source's column rules."""
    if source.hub in HUB_SOURCES:
        return HUB_SOURCES[source.hub]
    table = Table(source.hub or "", source.config, source.split)
    part = Part(
        table,
        source.query,
        source.corpus,
        negative=source.negative,
        kind=source.kind,
        label=source.label,
        score=source.score,
        min_score=source.min_score,
    )
    return (part,)


def open_table(table: Table):  # -> datasets.Dataset, whose import takes a second
    """Open one table.

    Raises:
        PipelineError: no network, no such data set, configuration or split; one line.
    """
    import datasets

    where = f"contrastive_data.sources: {table.name!r} (config {table.config!r}, split {table.split!r})"
    if not os.path.isdir(table.name) and not datasets.config.HF_HUB_OFFLINE:
        probe_hub(where)
    try:
        return datasets.load_dataset(table.name, table.config, split=table.split)
    except Exception as error:  # the library raises many kinds; every one is about this table
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PipelineError(f"{where} cannot be opened: {lines[0]}") from error


def tables_of(part: Part) -> list[Table]:
    """The part's own table and those it joins."""
    return [part.table, *(join.table for join in part.joins)]


def read_part(part: Part) -> pl.DataFrame:
    """The rows of a part: the columns that its rules read, ids replaced by texts, and ``_row`` from 1.

    Raises:
        PipelineError: a table cannot be opened or lacks a column.
    """
    frame = _columns(part.table, roots(part))
    frame = frame.with_row_index("_row", offset=1)
    for join in part.joins:
        texts = _columns(join.table, [join.key, join.text]).rename({join.key: join.column, join.text: "_text"})
        frame = frame.join(texts, on=join.column, how="left", maintain_order="left")
        frame = frame.drop(join.column).rename({"_text": join.column})
    return frame


def _columns(table: Table, names: list[str]) -> pl.DataFrame:
    data = open_table(table)
    missing = [name for name in names if name not in data.column_names]
    if missing:
        raise PipelineError(
            f"contrastive_data.sources: {table.name!r} (config {table.config!r}, split {table.split!r}) has no column "
            f"{missing[0]!r}; its columns are {', '.join(data.column_names)}"
        )
    return pl.from_arrow(data.select_columns(names).with_format("arrow")[:])  # type: ignore[return-value]
