"""Embedded training pairs and evaluation tasks, from the documented functions of installed packages.

Pairs come from modules that are not held out, tasks from held-out ones; a pair whose query or document occurs in a
task is dropped. Every choice is by sha256 of an id, so it does not depend on order or machine. Sources: CodeSearchNet
(docstring -> function) for the task, the BEIR layout for its files.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from neobert.corpus.extract import Candidate, text_hash
from neobert.io import write_text

MAX_CODE = 6000  # characters
MAX_QUERY = 400
PACKAGE_SHARE = 0.15  # of a task of many packages that one package may fill
LABELS = 12  # packages told apart by the classification and clustering tasks


class Pair(NamedTuple):
    query: str
    corpus: str
    source: str
    kind: str


class Task(NamedTuple):
    """An evaluation set: ``kind`` is retrieval, classification or clustering; ``files`` maps a name to its text."""

    name: str
    kind: str
    files: dict[str, str]
    prints: set[bytes]


def is_query(text: str) -> bool:
    """A sentence that describes: three words or more, mostly letters, no doctest, tag or directive."""
    if not 12 <= len(text) <= MAX_QUERY or len(text.split()) < 3 or text.startswith((">>>", "@", ":", "..", "[")):
        return False
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters >= 0.75 * len(text)


def is_code(text: str) -> bool:
    """A body that does something: long enough to tell from others, short enough to read."""
    return 40 <= len(text.strip()) <= MAX_CODE and "NotImplementedError" not in text


def pairs_of(candidate: Candidate) -> Iterator[Pair]:
    """The training pairs of one function, by kind."""
    package = candidate.package
    if is_query(candidate.query) and is_code(candidate.body):
        yield Pair(candidate.query, candidate.code, package, "docstring_code")
    if is_query(candidate.summary) and len(candidate.rest) >= 60:
        yield Pair(candidate.summary, candidate.rest[:MAX_CODE], package, "docstring_rest")
    if len(candidate.name.split()) >= 2 and is_code(candidate.body):
        yield Pair(candidate.name, candidate.body, package, "name_body")


def build_pairs(candidates: Iterable[Candidate], excluded: set[bytes]) -> list[Pair]:
    """Pairs without repeated queries or documents of a kind, and without texts in ``excluded``."""
    pairs: list[Pair] = []
    seen: dict[str, tuple[set[bytes], set[bytes]]] = defaultdict(lambda: (set(), set()))
    for candidate in candidates:
        own = (candidate.query, candidate.summary, candidate.code, candidate.body, candidate.rest)
        if any(text and text_hash(text) in excluded for text in own):
            continue
        for pair in pairs_of(candidate):
            queries, documents = seen[pair.kind]
            query, document = text_hash(pair.query.lower()), text_hash(pair.corpus)
            if query not in queries and document not in documents:
                queries.add(query)
                documents.add(document)
                pairs.append(pair)
    return pairs


def build_tasks(candidates: list[Candidate], unseen_packages: set[str], documents: int) -> list[Task]:
    """The six embedded tasks from the held-out ``candidates``.

    Args:
        unseen_packages: the packages held out whole; the retrieval tasks ``code_search_package*`` are theirs.
        documents: queries, and documents, of a retrieval task; texts of a classification test and of a clustering.
    """
    ordered = sorted(candidates, key=lambda candidate: hashlib.sha256(candidate.id.encode()).digest())
    unseen = [c for c in ordered if c.package in unseen_packages]
    split = [c for c in ordered if c.package not in unseen_packages]
    modules = _choose(split, documents, int(documents * PACKAGE_SHARE))
    package = _choose(unseen, documents, documents)
    return [
        _retrieval("code_search_modules", modules, with_def=True),
        _retrieval("code_search_modules_body", modules, with_def=False),
        _retrieval("code_search_package", package, with_def=True),
        _retrieval("code_search_package_body", package, with_def=False),
        _classification("package_classification", split, documents),
        _clustering("docstring_clustering", split, documents),
    ]


def _choose(candidates: list[Candidate], count: int, package_cap: int) -> list[Candidate]:
    """The first ``count`` functions with unlike queries, codes and bodies, at most ``package_cap`` a package."""
    chosen: list[Candidate] = []
    packages: Counter[str] = Counter()
    seen: set[bytes] = set()
    for candidate in candidates:
        if not (is_query(candidate.query) and is_code(candidate.body)) or packages[candidate.package] >= package_cap:
            continue
        prints = {text_hash(candidate.query.lower()), text_hash(candidate.code), text_hash(candidate.body)}
        if prints & seen:
            continue
        seen |= prints
        packages[candidate.package] += 1
        chosen.append(candidate)
        if len(chosen) == count:
            break
    return chosen


def _retrieval(name: str, chosen: list[Candidate], with_def: bool) -> Task:
    corpus = [{"_id": f"d{i}", "title": "", "text": c.code if with_def else c.body} for i, c in enumerate(chosen)]
    queries = [{"_id": f"q{i}", "text": c.query} for i, c in enumerate(chosen)]
    qrels = "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(len(chosen)))
    files = {"corpus.jsonl": _jsonl(corpus), "queries.jsonl": _jsonl(queries), "qrels/test.tsv": qrels}
    prints = {text_hash(text) for c in chosen for text in (c.query, c.code, c.body)}
    return Task(name, "retrieval", files, prints)


def _labelled(candidates: list[Candidate], texts: int) -> list[tuple[str, list[str]]]:
    """Unlike docstring summaries by package, of the ``LABELS`` packages that have most, equally many of each."""
    by_package: dict[str, list[str]] = defaultdict(list)
    seen: set[bytes] = set()
    for candidate in candidates:
        text = candidate.summary if is_query(candidate.summary) else ""
        print_ = text_hash(text.lower())
        if text and print_ not in seen:
            seen.add(print_)
            by_package[candidate.package].append(text)
    ranked = sorted(by_package.items(), key=lambda item: (-len(item[1]), item[0]))[:LABELS]
    each = min([texts // max(len(ranked), 1), *(len(found) for _, found in ranked)])
    return [(package, found[:each]) for package, found in ranked]


def _classification(name: str, candidates: list[Candidate], documents: int) -> Task:
    """Which package does a docstring's first paragraph come from; half the texts of each package train."""
    labelled = _labelled(candidates, 2 * documents)
    train = [{"text": text, "label": package} for package, texts in labelled for text in texts[: len(texts) // 2]]
    test = [{"text": text, "label": package} for package, texts in labelled for text in texts[len(texts) // 2 :]]
    prints = {text_hash(row["text"]) for row in train + test}
    return Task(name, "classification", {"train.jsonl": _jsonl(train), "test.jsonl": _jsonl(test)}, prints)


def _clustering(name: str, candidates: list[Candidate], documents: int) -> Task:
    """Docstrings' first paragraphs, to be grouped by package."""
    rows = [{"text": text, "label": package} for package, texts in _labelled(candidates, documents) for text in texts]
    return Task(name, "clustering", {"test.jsonl": _jsonl(rows)}, {text_hash(row["text"]) for row in rows})


def _jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def write_task(task: Task, directory: Path) -> None:
    """Write the files of ``task`` below ``directory/<task name>``."""
    for name, text in task.files.items():
        write_text(directory / task.name / name, text)
