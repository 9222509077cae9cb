"""The embedded corpus: text, training pairs and evaluation tasks from installed packages, in one parse.

Held out, from text and pairs alike: whole packages and a hash split of modules. Whatever text an evaluation task holds
is also dropped wherever else it occurs (copies are common in source code). Long paragraphs are kept once.
Cost: about 25 CPU-seconds for 100 MB of source, in two processes.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from neobert.config.corpus import CorpusConfig
from neobert.corpus.extract import Candidate, Document, extract_all, without_seen
from neobert.corpus.installed import find_modules, unit_hash
from neobert.corpus.pairs import Pair, build_pairs, build_tasks, write_task
from neobert.corpus.shards import CorpusWriter, Text
from neobert.errors import PipelineError
from neobert.io import write_manifest
from neobert.progress import progress

log = logging.getLogger(__name__)
MIN_DOCUMENT = 64  # characters; what is left of a document after deduplication may be less than a sentence
SOURCE = "installed_packages"


def write_embedded(config: CorpusConfig, corpus: Path, embedded: Path, workers: int) -> dict[str, Any]:
    """Write ``corpus`` (Parquet shards) and ``embedded`` (pairs.parquet, tasks/), each with its manifest.

    Returns:
        Both manifests, as {"corpus": ..., "embedded": ...}.

    Raises:
        PipelineError: a package is missing, of another version or not pure Python; nothing was found.
    """
    files = find_modules(config.packages, config.held_out_packages, config.held_out_module_fraction)
    documents: list[Document] = []
    candidates: list[Candidate] = []
    held_out: list[Candidate] = []
    unparsed = []
    with progress("read packages", len(files), "modules") as counter:
        for extracted in extract_all(files, workers):
            documents.extend(extracted.documents)
            (held_out if extracted.file.held_out else candidates).extend(extracted.candidates)
            if not extracted.parsed:
                unparsed.append(extracted.file.name)
            counter.advance()
    if unparsed:
        log.info("%d modules left out, not readable as Python: %s", len(unparsed), ", ".join(unparsed[:5]))
    tasks = build_tasks(held_out, set(config.held_out_packages), config.task_documents)
    excluded = set().union(*(task.prints for task in tasks))
    texts = _deduplicate(documents, excluded, config.max_characters)
    log.info("%d documents of %d characters", len(texts), sum(len(text.text) for text in texts))
    manifest = _write_corpus(config, corpus, texts)
    pairs = build_pairs(candidates, excluded)
    log.info("%d pairs", len(pairs))
    for task in tasks:
        write_task(task, embedded / "tasks")
    return {"corpus": manifest, "embedded": _write_pairs(embedded, pairs, {t.name: t.kind for t in tasks})}


def _deduplicate(documents: list[Document], excluded: set[bytes], cap: int | None) -> list[Text]:
    """Drop what a task holds and repeated paragraphs; then thin evenly, by hash of the id, to ``cap`` characters."""
    seen = set(excluded)
    texts = []
    for document in documents:
        if any(print_ in excluded for print_ in document.prints):
            continue
        text = without_seen(document, seen)
        if len(text) >= MIN_DOCUMENT:
            texts.append(Text(document.id, document.package, _encodable(text)))
    if not texts:
        raise PipelineError("corpus.packages: no text was found in them; list packages with documented Python code")
    total = sum(len(text.text) for text in texts)
    if cap is not None and total > cap:
        log.info("corpus.max_characters keeps %d of %d characters", cap, total)
        texts = [text for text in texts if unit_hash(text.id) < cap / total]
    return texts


def _encodable(text: str) -> str:
    """UTF-8 cannot hold a lone surrogate, which a docstring may write as an escape."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _write_corpus(config: CorpusConfig, directory: Path, texts: list[Text]) -> dict[str, Any]:
    writer = CorpusWriter(directory, config.documents_per_shard, config.validation_fraction)
    writer.begin_input(SOURCE)
    content = hashlib.sha256()
    for text in texts:
        content.update(f"{text.id}\0{text.text}\0".encode())
        writer.add(text)
    return writer.finish({"source": SOURCE, "sources": [SOURCE], "content_sha256": content.hexdigest()})


def _write_pairs(directory: Path, pairs: list[Pair], tasks: dict[str, str]) -> dict[str, Any]:
    directory.mkdir(parents=True, exist_ok=True)
    columns = {name: pa.array([_encodable(getattr(p, name)) for p in pairs], pa.string()) for name in Pair._fields}
    pq.write_table(pa.table(columns), directory / "pairs.parquet", compression="zstd", row_group_size=16_384)
    kinds: dict[str, int] = {}
    for pair in pairs:
        kinds[pair.kind] = kinds.get(pair.kind, 0) + 1
    return write_manifest(directory, {"pairs": kinds, "tasks": tasks})
