"""Modules of source code -> documents and documented functions, in worker processes.

Each worker does all the per-text work (parsing, cutting, hashing of paragraphs and of whole texts), so the parent only
compares hashes, in the order of the files: the result does not depend on how many workers there are.
Cost: about 4 MB of source a second and worker.
"""

import hashlib
import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from neobert.corpus.installed import SourceFile, read_source
from neobert.corpus.source_code import Function, first_paragraph, first_sentence, identifier_words, parse_module

CHUNK_BYTES = 1 << 20
MIN_PARAGRAPH = 48  # shorter paragraphs ("return self") repeat for good reason and are never dropped
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*?(?=\S|[ \t]+\S)")


class Document(NamedTuple):
    """A pretraining text; ``paragraphs`` are its long paragraphs' hashes, ``prints`` the hashes of the texts in it
    that an evaluation task could hold."""

    id: str
    package: str
    text: str
    paragraphs: tuple[bytes, ...]
    prints: tuple[bytes, ...]


class Candidate(NamedTuple):
    """A function that can make pairs or evaluation texts."""

    id: str
    package: str
    name: str  # identifier as words
    query: str  # first sentence of the docstring, "" without one
    summary: str  # first paragraph
    rest: str  # the docstring's other paragraphs
    code: str
    body: str


class Extracted(NamedTuple):
    file: SourceFile
    documents: list[Document]
    candidates: list[Candidate]
    parsed: bool


def text_hash(text: str) -> bytes:
    """8 bytes that are equal for texts equal up to white space."""
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def paragraphs(text: str) -> list[str]:
    """Split at blank lines, keeping indentation."""
    return [part.strip("\n") for part in _BLANK_LINES.split(text)]


def extract_all(files: list[SourceFile], workers: int) -> Iterator[Extracted]:
    """Extract every module, in the order of ``files``, in ``workers`` processes (1: in this one)."""
    chunks = list(_chunks(files))
    if workers <= 1 or len(chunks) == 1:
        for chunk in chunks:
            yield from extract_chunk(chunk)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as pool:
        for extracted in pool.map(extract_chunk, chunks):
            yield from extracted


def _chunks(files: list[SourceFile]) -> Iterator[list[SourceFile]]:
    from pathlib import Path

    chunk: list[SourceFile] = []
    size = 0
    for file in files:
        chunk.append(file)
        size += Path(file.path).stat().st_size
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def extract_chunk(files: list[SourceFile]) -> list[Extracted]:
    """Read and cut some modules."""
    return [extract_module(file, read_source(file)) for file in files]


def extract_module(file: SourceFile, source: str | None) -> Extracted:
    """Cut one module into documents (if not held out) and candidates for pairs or tasks.

    A module that this Python cannot parse (a template, another language version) gives nothing, and says so.
    """
    try:
        module = parse_module(source) if source is not None else None
    except (SyntaxError, ValueError, RecursionError):
        module = None
    if module is None:
        return Extracted(file, [], [], False)
    documents = []
    candidates = []
    if module.prose and not file.held_out:
        documents.append(_document(file, "", module.prose, ()))
    for function in module.functions:
        candidate = _candidate(file, function)
        texts = (candidate.query, candidate.summary, function.docstring, candidate.code, candidate.body)
        if not file.held_out:
            prints = tuple(text_hash(text) for text in texts if text)
            documents.append(_document(file, f":{function.line}", function.text, prints))
        candidates.append(candidate)
    return Extracted(file, documents, candidates, True)


def _document(file: SourceFile, suffix: str, text: str, prints: tuple[bytes, ...]) -> Document:
    hashes = tuple(text_hash(part) for part in paragraphs(text) if len(part) >= MIN_PARAGRAPH)
    return Document(file.package + "/" + file.name + suffix, file.package, text, hashes, prints)


def _candidate(file: SourceFile, function: Function) -> Candidate:
    summary, rest = first_paragraph(function.docstring)
    return Candidate(
        id=f"{file.package}/{file.name}:{function.line}",
        package=file.package,
        name=identifier_words(function.qualname),
        query=first_sentence(function.docstring),
        summary=summary,
        rest=rest,
        code=function.code,
        body=function.body,
    )


def without_seen(document: Document, seen: set[bytes]) -> str:
    """The text of ``document`` without long paragraphs in ``seen``, to which the others are added."""
    if not any(hash_ in seen for hash_ in document.paragraphs) and len(set(document.paragraphs)) == len(
        document.paragraphs
    ):
        seen.update(document.paragraphs)
        return document.text
    kept = []
    for part in paragraphs(document.text):
        if len(part) >= MIN_PARAGRAPH:
            hash_ = text_hash(part)
            if hash_ in seen:
                continue
            seen.add(hash_)
        kept.append(part)
    return "\n\n".join(kept)
