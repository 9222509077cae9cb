"""Documents from data sets of the Hugging Face hub (or a local folder), through ``datasets.load_dataset``.

Without a network this fails at once with one line, where the library alone would retry for minutes.
Cost: network and Arrow decoding; memory is one batch when streaming.
"""

import logging
import os
import textwrap
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from neobert.config.corpus import HubDataset
from neobert.corpus.rows import Rows
from neobert.corpus.shards import Text
from neobert.errors import PipelineError
from neobert.network import probe_hub

log = logging.getLogger(__name__)


def read_hub(hub: list[HubDataset], rows: Rows) -> Iterator[tuple[str, Iterable[Text]]]:
    """For each data set, its source and its documents. All are opened before the first is read.

    Raises:
        PipelineError: no network, no such data set, configuration or split, no text column; rows that cannot be read; a
            bad row under ``on_bad_rows: fail``.
    """
    opened = [(dataset, open_dataset(dataset)) for dataset in hub]
    for dataset, table in opened:
        columns = table.column_names
        if columns is not None and rows.column not in columns:
            raise PipelineError(
                f"corpus.hub: {dataset.name} ({dataset.split}) has no column {rows.column!r} (corpus.text_column); "
                f"it has {', '.join(columns)}"
            )
    for dataset, table in opened:
        yield dataset.source, _read(dataset, table, rows)


def open_dataset(dataset: HubDataset) -> Any:
    """Open one data set with ``datasets``.

    Raises:
        PipelineError: it cannot be reached or opened; one line with the remedy.
    """
    import datasets

    local = os.path.isdir(dataset.name)
    if not local and not datasets.config.HF_HUB_OFFLINE:
        probe_hub(f"corpus.hub: {dataset.name!r}")
    try:
        return datasets.load_dataset(dataset.name, dataset.config, split=dataset.split, streaming=dataset.streaming)
    except Exception as error:  # the library raises many kinds; every one is about this entry of params
        raise PipelineError(f"{_entry(dataset)} cannot be opened: {_reason(error)}") from error


def _entry(dataset: HubDataset) -> str:
    return f"corpus.hub: {dataset.name!r} (config {dataset.config!r}, split {dataset.split!r})"


def _reason(error: Exception) -> str:
    """What went wrong, in one line: some errors of the library begin with, or only are, an envelope."""
    said = str(error).removeprefix("An error occurred while generating the dataset").strip()
    return textwrap.shorten(said or str(error.__cause__ or "") or type(error).__name__, 300).rstrip(".")


def _numbered(dataset: HubDataset, table: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows, counted from 1.

    Raises:
        PipelineError: the library cannot read on: a damaged file, rows of another kind, a lost connection.
    """
    number = 0
    try:
        for row in islice(table, dataset.max_documents):
            number += 1
            yield number, row
    except Exception as error:  # as in opening: its readers, Arrow and the network have kinds of their own
        raise PipelineError(
            f"{_entry(dataset)} cannot be read beyond row {number}: {_reason(error)}; check the network, or mend or "
            "leave out the file with the rows that follow (corpus.on_bad_rows: skip covers only rows that can be read)"
        ) from error


def _read(dataset: HubDataset, table: Iterable[dict[str, Any]], rows: Rows) -> Iterator[Text]:
    for number, row in _numbered(dataset, table):
        where = f"{dataset.source}:{number}"
        if rows.column not in row:
            rows.bad(where, "no text column", f"has no column {rows.column!r}; it has {', '.join(row)}")
            continue
        text = rows.text(row[rows.column], where)
        if text is not None:
            yield Text(where, dataset.source, text)
