"""The embedded corpus: determinism, what is held out, what is dropped, refusal of other packages."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from neobert.config.corpus import PACKAGES, CorpusConfig
from neobert.corpus.build import write_corpus
from neobert.corpus.embedded import write_embedded
from neobert.corpus.extract import text_hash
from neobert.corpus.installed import find_modules
from neobert.errors import PipelineError

SMALL = [p for p in PACKAGES if p.split("==")[0] in {"networkx", "click", "kombu", "rich"}]
CONFIG = CorpusConfig(packages=SMALL, task_documents=40, held_out_module_fraction=0.3, documents_per_shard=2000)


def tree_hash(directory: Path) -> dict[str, str]:
    return {
        p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("embedded")
    (root / "c").mkdir()
    (root / "e").mkdir()
    write_embedded(CONFIG, root / "c", root / "e", workers=1)
    return root


def documents(root: Path) -> list[dict]:
    return [row for path in sorted((root / "c").rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def task_texts(root: Path) -> set[str]:
    texts = set()
    for path in (root / "e" / "tasks").rglob("*.jsonl"):
        texts |= {json.loads(line)["text"] for line in path.read_text().splitlines()}
    return texts


def test_same_bytes_with_another_number_of_processes(built, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "e").mkdir()
    write_embedded(CONFIG, tmp_path / "c", tmp_path / "e", workers=2)
    assert tree_hash(built) == tree_hash(tmp_path)


def test_held_out_packages_and_modules_are_in_neither_text_nor_pairs(built):
    held_out = {
        f"{file.package}/{file.name}"
        for file in find_modules(SMALL, CONFIG.held_out_packages, CONFIG.held_out_module_fraction)
        if file.held_out
    }
    ids = {row["id"].partition(":")[0] for row in documents(built)}
    assert ids
    assert not ids & held_out
    pairs = pq.read_table(built / "e" / "pairs.parquet").to_pylist()
    assert {pair["source"] for pair in pairs} == {p.split("==")[0] for p in SMALL} - {"networkx"}
    assert {pair["kind"] for pair in pairs} == {"docstring_code", "docstring_rest", "name_body"}


def test_no_text_of_a_task_is_trained_on(built):
    prints = {text_hash(text) for text in task_texts(built)}
    pairs = pq.read_table(built / "e" / "pairs.parquet").to_pylist()
    assert not prints & {text_hash(pair[side]) for pair in pairs for side in ("query", "corpus")}
    assert not prints & {text_hash(part) for row in documents(built) for part in row["text"].split("\n\n") if part}


def test_retrieval_tasks_are_in_beir_layout(built):
    for name in ("code_search_modules", "code_search_package_body"):
        folder = built / "e" / "tasks" / name
        corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
        queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
        qrels = [line.split("\t") for line in (folder / "qrels" / "test.tsv").read_text().splitlines()]
        assert qrels[0] == ["query-id", "corpus-id", "score"]
        assert {row[0] for row in qrels[1:]} == {query["_id"] for query in queries}
        assert {row[1] for row in qrels[1:]} <= {document["_id"] for document in corpus}
        assert len({document["text"] for document in corpus}) == len(corpus) > 10
        assert len({query["text"] for query in queries}) == len(queries)


def test_classification_splits_share_no_text_and_all_labels(built):
    folder = built / "e" / "tasks" / "package_classification"
    train, test = ([json.loads(line) for line in (folder / f"{name}.jsonl").open()] for name in ("train", "test"))
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    assert {row["label"] for row in train} == {row["label"] for row in test}


def test_long_paragraphs_occur_once(built):
    seen = set()
    for row in documents(built):
        for part in row["text"].split("\n\n"):
            if len(part) >= 48 and "\n" not in part:
                assert part not in seen
                seen.add(part)


def test_character_cap_thins_every_package(tmp_path, built):
    for name in ("c", "e"):
        (tmp_path / name).mkdir()
    whole = sum(len(row["text"]) for row in documents(built))
    config = CorpusConfig(**{**CONFIG.__dict__, "max_characters": whole // 2})
    write_embedded(config, tmp_path / "c", tmp_path / "e", workers=1)
    kept = documents(tmp_path)
    assert 0.4 < sum(len(row["text"]) for row in kept) / whole < 0.6
    assert {row["source"] for row in kept} == {row["source"] for row in documents(built)}


@pytest.mark.parametrize(
    ("package", "message"),
    [("click==0.1", "0.1 is pinned, but"), ("nosuch==1.0", "not installed"), ("numpy==", "pure-Python")],
)
def test_other_packages_are_refused(package, message, tmp_path):
    import numpy

    package = package + numpy.__version__ if package == "numpy==" else package
    config = CorpusConfig(packages=[*SMALL, package])
    with pytest.raises(PipelineError, match=r"corpus\.packages"):
        write_corpus(config, tmp_path / "c", tmp_path / "e")
    with pytest.raises(PipelineError, match=message):
        write_corpus(config, tmp_path / "c", tmp_path / "e")


def test_default_list_is_valid():
    assert list(CorpusConfig().problems()) == []
    assert {"networkx", "transformers"} <= {p.split("==")[0] for p in PACKAGES}
