"""Documents from data sets of the Hugging Face hub (or a local folder), through ``datasets.load_dataset``.

Without a network this fails at once with one line, where the library alone would retry for minutes.
Cost: network and Arrow decoding; memory is one batch when streaming.
"""

import logging
import os
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
        PipelineError: no network, no such data set, configuration or split, no text column; a bad row under
            ``on_bad_rows: fail``.
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
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PipelineError(
            f"corpus.hub: {dataset.name!r} (config {dataset.config!r}, split {dataset.split!r}) cannot be opened: "
            f"{first_line}"
        ) from error


def _read(dataset: HubDataset, table: Iterable[dict[str, Any]], rows: Rows) -> Iterator[Text]:
    for number, row in enumerate(islice(table, dataset.max_documents), start=1):
        where = f"{dataset.source}:{number}"
        if rows.column not in row:
            rows.bad(where, "no text column", f"has no column {rows.column!r}; it has {', '.join(row)}")
            continue
        text = rows.text(row[rows.column], where)
        if text is not None:
            yield Text(where, dataset.source, text)
