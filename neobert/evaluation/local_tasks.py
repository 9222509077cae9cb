"""MTEB tasks over local files, declared in ``evaluation.tasks``.

Each type reads the layout that is usual for it, and any line that does not fit is an error with its file and line:

- retrieval (BEIR): ``corpus.jsonl`` {_id, title?, text}, ``queries.jsonl`` {_id, text}, ``qrels/test.tsv`` with the
  header ``query-id corpus-id score``.
- reranking: ``test.jsonl`` {query, positive: [text], negative: [text]}.
- sts: ``test.jsonl`` {sentence1, sentence2, score}; pair_classification: {sentence1, sentence2, label 0 or 1}.
- classification: ``train.jsonl`` and ``test.jsonl`` {text, label}; clustering: ``test.jsonl`` {text, label}.

The result is an MTEB 2.x task object with its data loaded: MTEB computes the metrics, so that a local figure means
what the same figure of a public task means. A task object carries random state (clustering draws samples), so make a
fresh one for each model: then every model sees the same draws.
Source: ``mteb.abstasks`` (2.x). Cost: one pass over the files.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.clustering import AbsTaskClustering
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from neobert.config.evaluation import LocalTask
from neobert.errors import PipelineError
from neobert.io import fingerprint, sha256_file
from neobert.jsonl import read_jsonl

QRELS_HEADER = ["query-id", "corpus-id", "score"]
MTEB_TYPES = {
    "retrieval": "Retrieval",
    "reranking": "Reranking",
    "sts": "STS",
    "classification": "Classification",
    "clustering": "Clustering",
    "pair_classification": "PairClassification",
}


def _retrieval_data(path: Path) -> dict[str, Any]:
    corpus = read_jsonl(path / "corpus.jsonl", {"_id": str, "text": str}, optional={"title": ""})
    queries = read_jsonl(path / "queries.jsonl", {"_id": str, "text": str})
    documents, known = _ids(path / "corpus.jsonl", corpus), _ids(path / "queries.jsonl", queries)
    relevant: dict[str, dict[str, int]] = {}
    for number, (query, document, score) in _qrels(path / "qrels" / "test.tsv"):
        where = f"{path / 'qrels' / 'test.tsv'}:{number}"
        if query not in known or document not in documents:
            missing = f"query {query!r}" if query not in known else f"document {document!r}"
            raise PipelineError(f"{where}: {missing} is not in the task's files")
        relevant.setdefault(query, {})[document] = score
    if not any(score > 0 for scores in relevant.values() for score in scores.values()):
        raise PipelineError(f"{path / 'qrels' / 'test.tsv'}: names no relevant document; nothing can be measured")
    return {
        "corpus": _documents(corpus),
        "queries": _documents(queries),
        "relevant_docs": relevant,
        "top_ranked": None,
    }


def _ids(path: Path, rows: list[dict[str, Any]]) -> set[str]:
    """The rows' ``_id``; of two rows with one, each model keeps another, and scores would not compare."""
    first: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if (other := first.setdefault(row["_id"], number)) != number:
            raise PipelineError(
                f"{path}: _id {row['_id']!r} is that of rows {other} and {number}; give each row its own, or remove one"
            )
    return set(first)


def _documents(rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list([{"id": row.pop("_id"), **row} for row in rows])


def _qrels(path: Path) -> Iterator[tuple[int, tuple[str, str, int]]]:
    if not path.is_file():
        raise PipelineError(
            f"{path}: does not exist; a retrieval task needs it (tab-separated {' '.join(QRELS_HEADER)})"
        )
    with open(path, encoding="utf-8", newline="") as handle:
        for number, fields in enumerate(csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if number == 1 and fields == QRELS_HEADER:
                continue
            if number == 1 or len(fields) != 3 or not fields[2].lstrip("-").isdigit():
                rule = "the header query-id, corpus-id, score" if number == 1 else "query id, corpus id, whole number"
                raise PipelineError(f"{path}:{number}: {fields!r} is not {rule} separated by tabs")
            yield number, (fields[0], fields[1], int(fields[2]))


def _reranking_data(path: Path) -> dict[str, Any]:
    rows = read_jsonl(path / "test.jsonl", {"query": str, "positive": list, "negative": list})
    data: dict[str, Any] = {"corpus": [], "queries": [], "relevant_docs": {}, "top_ranked": {}}
    for number, row in enumerate(rows):
        texts = [*row["positive"], *row["negative"]]
        if not row["positive"] or not row["negative"] or not all(isinstance(t, str) for t in texts):
            raise PipelineError(
                f"{path / 'test.jsonl'}: row {number + 1} needs positive and negative texts, both non-empty"
            )
        query, ids = f"q{number}", [f"q{number}-d{i}" for i in range(len(texts))]
        data["queries"].append({"id": query, "text": row["query"]})
        data["corpus"] += [{"id": i, "title": "", "text": t} for i, t in zip(ids, texts, strict=True)]
        data["relevant_docs"][query] = {i: int(n < len(row["positive"])) for n, i in enumerate(ids)}
        data["top_ranked"][query] = ids
    return {**data, "corpus": Dataset.from_list(data["corpus"]), "queries": Dataset.from_list(data["queries"])}


def _labelled(path: Path, splits: tuple[str, ...]) -> DatasetDict:
    rows = {s: read_jsonl(path / f"{s}.jsonl", {"text": str, "label": (str, int)}) for s in splits}
    # Sorted names, so that the ids of the labels do not depend on the order of the rows.
    names = sorted({str(row["label"]) for split in rows.values() for row in split})
    if len(names) < 2:
        raise PipelineError(f"{path}: has one label ({names[0]}); a task needs two or more")
    number = {name: i for i, name in enumerate(names)}
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"text": [r["text"] for r in found], "label": [number[str(r["label"])] for r in found]}
            )
            for split, found in rows.items()
        }
    )


def _pairs(path: Path, column: str, kinds: tuple[type, ...]) -> DatasetDict:
    rows = read_jsonl(path / "test.jsonl", {"sentence1": str, "sentence2": str, column: kinds})
    if column == "label" and {row["label"] for row in rows} != {0, 1}:
        raise PipelineError(f"{path / 'test.jsonl'}: label must be 0 or 1, and both must occur")
    return DatasetDict({"test": Dataset.from_list(rows)})


# type -> MTEB's class, what a local task sets on it, reader of the files
_KINDS: dict[str, tuple[type[AbsTask], dict[str, Any], Callable[[Path], Any]]] = {
    "retrieval": (AbsTaskRetrieval, {}, _retrieval_data),
    "reranking": (AbsTaskRetrieval, {}, _reranking_data),
    "sts": (AbsTaskSTS, {}, lambda path: _pairs(path, "score", (int, float))),
    "classification": (AbsTaskClassification, {}, lambda path: _labelled(path, ("train", "test"))),
    "clustering": (
        AbsTaskClustering,
        # MTEB's default embeds 4% of the documents, which leaves nothing of a small set.
        {
            "max_fraction_of_documents_to_embed": None,
            "max_documents_per_cluster": 2048,
            "input_column_name": "text",
            "label_column_name": "label",
        },
        lambda path: _labelled(path, ("test",)),
    ),
    "pair_classification": (
        AbsTaskPairClassification,
        {"label_column_name": "label"},
        lambda path: _pairs(path, "label", (int,)),
    ),
}


def local_task(spec: LocalTask) -> AbsTask:
    """A fresh MTEB task with the data of ``spec.path``; its revision is the hash of its files.

    Raises:
        PipelineError: the directory or a file is missing, or a line does not fit its layout.
    """
    path = Path(spec.path)
    if not path.is_dir():
        raise PipelineError(
            f"evaluation.tasks: {spec.name}: {path} is not a directory; run `dvc repro` or correct path"
        )
    base, options, read = _KINDS[spec.type]
    files = sorted(p for p in path.rglob("*") if p.suffix in {".jsonl", ".tsv"})
    metadata = TaskMetadata(
        name=spec.name,
        description=f"Local {spec.type} task over {spec.path}",
        type=MTEB_TYPES[spec.type],  # type: ignore[arg-type]
        dataset={"path": spec.path, "revision": fingerprint([sha256_file(p) for p in files])},
        eval_langs=["eng-Latn"],  # MTEB wants one; no metric depends on it
        main_score=spec.main_metric,
        category="t2t",
    )
    # MTEB reads the metadata from the class, before an instance has anything of its own.
    task = type("LocalTask", (base,), {**options, "metadata": metadata})()
    data = read(path)
    task.dataset = {"default": {"test": data}} if base is AbsTaskRetrieval else data
    task.data_loaded = True
    return task
