"""Make the corpus from whichever source the section ``corpus`` names."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from neobert.config.corpus import CorpusConfig
from neobert.corpus.embedded import write_embedded
from neobert.corpus.files import read_files
from neobert.corpus.hub import read_hub
from neobert.corpus.rows import Rows
from neobert.corpus.shards import CorpusWriter
from neobert.io import write_manifest
from neobert.progress import progress

log = logging.getLogger(__name__)


def write_corpus(config: CorpusConfig, corpus: Path, embedded: Path | None = None) -> dict[str, Any]:
    """Write the shards of ``corpus`` and, where the source is ``installed_packages``, of ``embedded``.

    What is in the two directories is removed first. With other sources ``embedded`` holds only a manifest.

    Returns:
        The corpus's manifest.

    Raises:
        PipelineError: see the source's own module; also no document at all.
    """
    for directory in filter(None, (corpus, embedded)):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    if config.source == "installed_packages":
        if embedded is None:
            raise ValueError("the source installed_packages writes pairs and tasks too")
        return write_embedded(config, corpus, embedded, workers=len(os.sched_getaffinity(0)))["corpus"]
    rows = Rows(config.text_column, config.on_bad_rows, config.max_document_bytes)
    inputs = (
        read_files(config.files, rows, config.text_documents)
        if config.source == "files"
        else read_hub(config.hub, rows)
    )
    sources = config.files if config.source == "files" else [dataset.source for dataset in config.hub]
    writer = CorpusWriter(corpus, config.documents_per_shard, config.validation_fraction)
    with progress("read corpus") as counter:
        for source, texts in inputs:
            writer.begin_input(source)
            for text in texts:
                writer.add(text)
                counter.advance()
    if embedded is not None:
        write_manifest(embedded, {"pairs": {}, "tasks": {}})
    manifest = writer.finish({"source": config.source, "sources": sources, "skipped_rows": dict(rows.skipped)})
    if rows.skipped:
        log.warning("skipped %d rows: %s", sum(rows.skipped.values()), dict(rows.skipped))
    return manifest
