"""The documents' hub sources, each on a row in its own table's shape, and hub access without a network."""

import dataclasses
import json
from pathlib import Path

import polars as pl
import pytest
from datasets import Dataset

from neobert.config import contrastive_data
from neobert.config.contrastive_data import ContrastiveDataConfig, PairSource
from neobert.config.schema import parse
from neobert.contrastive import hub
from neobert.contrastive.hub_sources import HUB_SOURCES, Table
from neobert.contrastive.preprocess import preprocess, read_source
from neobert.errors import PipelineError

CONFIG = ContrastiveDataConfig(sources={"s": PairSource(path="x")}, decontaminate=[])


def negatives(count: int) -> dict[str, str]:
    return {f"negative_{i + 1}": f"bad answer {i + 1}" for i in range(count)}


def retrieval(name: str) -> dict[Table, list[dict]]:
    return {
        Table(name, "default", "train"): [
            {"query-id": "q1", "corpus-id": "d1", "score": 1.0},
            {"query-id": "q1", "corpus-id": "d2", "score": 0.0},
        ],
        Table(name, "queries", "queries"): [{"_id": "q1", "text": "a query"}, {"_id": "q2", "text": "other"}],
        Table(name, "corpus", "corpus"): [
            {"_id": "d1", "title": "T", "text": "a document"},
            {"_id": "d2", "title": "", "text": "not relevant"},
        ],
    }


def scored(name: str) -> dict[Table, list[dict]]:
    return {
        Table(name): [
            {"sentence1": "alike one", "sentence2": "alike two", "score": 4.4},
            {"sentence1": "rather alike", "sentence2": "alike rather", "score": 4.0},
            {"sentence1": "unlike one", "sentence2": "other two", "score": 1.0},
        ]
    }


DUPLICATES = "sentence-transformers/stackexchange-duplicates"
# Source: its tables in their own shape, and the (query, positive, negatives, kind) expected of them.
FIXTURES: dict[str, tuple[dict[Table, list[dict]], list[tuple]]] = {
    "ALLNLI": (
        {
            Table("sentence-transformers/all-nli", "triplet"): [
                {"anchor": "A person rides.", "positive": "Someone is outdoors.", "negative": "Nobody moves."}
            ]
        },
        [("A person rides.", "Someone is outdoors.", ["Nobody moves."], "")],
    ),
    "AMAZONQA": (
        {Table("embedding-data/Amazon-QA"): [{"query": "does it fit", "pos": ["yes it does", "it did not"]}]},
        [("does it fit", "yes it does", [], "")],
    ),
    "CONCURRENTQA": (
        {
            Table("stanfordnlp/concurrentqa-retrieval"): [
                {
                    "_id": "1",
                    "question": "who wrote it",
                    "answers": ["x"],
                    "pos_paras": [{"title": "t", "text": "He wrote it."}, {"title": "u", "text": "So did she."}],
                    "neg_paras": [{"title": "v", "text": "Not that."}, {"title": "w", "text": "Nor this."}],
                }
            ]
        },
        [("who wrote it", "He wrote it.", ["Not that.", "Nor this."], "")],
    ),
    "FEVER": (retrieval("mteb/fever"), [("a query", "a document", [], "")]),
    "GITHUBISSUE": (
        {Table("WhereIsAI/github-issue-similarity", "positive"): [{"anchor": "it crashes", "positive": "segfault"}]},
        [("it crashes", "segfault", [], "")],
    ),
    "GOOAQ": (
        {
            Table("tomaarsen/gooaq-hard-negatives", "triplet-5"): [
                {"question": "how far", "answer": "10 km", **negatives(5)}
            ]
        },
        [("how far", "10 km", list(negatives(5).values()), "")],
    ),
    "MSMARCO": (retrieval("mteb/msmarco"), [("a query", "a document", [], "")]),
    "PAQ": ({Table("embedding-data/PAQ_pairs"): [{"set": ["who is", "a passage"]}]}, [("who is", "a passage", [], "")]),
    "PUBMEDQA": (
        {
            Table("sentence-transformers/pubmedqa", "triplet-20"): [
                {"anchor": "does it help", "positive": "it helps", **negatives(20)}
            ]
        },
        [("does it help", "it helps", list(negatives(20).values()), "")],
    ),
    "QQP": (
        {
            Table("embedding-data/QQP_triplets"): [
                {"set": {"query": "why so", "pos": ["how come"], "neg": ["why not", "what for"]}}
            ]
        },
        [("why so", "how come", ["why not", "what for"], "")],
    ),
    "SENTENCECOMP": (
        {Table("embedding-data/sentence-compression"): [{"set": ["a long sentence it is", "long sentence"]}]},
        [("long sentence", "a long sentence it is", [], "")],
    ),
    "STACKEXCHANGE": (
        {
            Table(DUPLICATES, "body-body-pair"): [{"body1": "body one", "body2": "body two"}],
            Table(DUPLICATES, "post-post-pair"): [{"post1": "post one", "post2": "post two"}],
        },
        [("body one", "body two", [], "body"), ("post one", "post two", [], "post")],
    ),
    "STACKOVERFLOW": (
        {
            Table("mteb/stackoverflowdupquestions-reranking"): [
                {"query": "sort a list", "positive": ["list sorting", "order"], "negative": ["sort of", "listen"]}
            ]
        },
        [("sort a list", "list sorting", ["sort of", "listen"], "")],
    ),
    "STS12": (scored("mteb/sts12-sts"), [("alike one", "alike two", [], "")]),
    "STSBENCHMARK": (scored("mteb/stsbenchmark-sts"), [("alike one", "alike two", [], "")]),
    "TRIVIAQA": (
        {
            Table("sentence-transformers/trivia-qa-triplet", "triplet"): [
                {"anchor": "which river", "positive": "the Rhine", "negative": "a lake"}
            ]
        },
        [("which river", "the Rhine", ["a lake"], "")],
    ),
    "WIKIHOW": (
        {Table("sentence-transformers/wikihow"): [{"text": "Boil the water.", "summary": "Making tea"}]},
        [("Boil the water.", "Making tea", [], "")],
    ),
}


def test_every_documented_source_is_declared():
    assert set(FIXTURES) == set(HUB_SOURCES) == set(contrastive_data.HUB_NAMES)


@pytest.mark.parametrize("name", FIXTURES)
def test_rules_fit_the_source(name, monkeypatch):
    tables, expected = FIXTURES[name]
    monkeypatch.setattr(hub, "open_table", lambda table: Dataset.from_list(tables[table]))
    prepared = read_source(name, PairSource(hub=name), CONFIG)
    assert prepared.bad.height == 0
    assert prepared.pairs.select("query", "corpus", "negatives", "kind").rows() == expected


def test_a_missing_text_and_a_missing_column(monkeypatch):
    tables = retrieval("mteb/fever")
    tables[Table("mteb/fever", "corpus", "corpus")].pop(0)
    monkeypatch.setattr(hub, "open_table", lambda table: Dataset.from_list(tables[table]))
    prepared = read_source("FEVER", PairSource(hub="FEVER"), CONFIG)
    assert prepared.counts["bad_by_rule"] == {"corpus: not null": 1}
    tables[Table("mteb/fever", "default", "train")] = [{"query-id": "q1", "score": 1.0}]
    with pytest.raises(PipelineError, match=r"mteb/fever.*no column 'corpus-id'; its columns are query-id, score"):
        read_source("FEVER", PairSource(hub="FEVER"), CONFIG)


def test_a_data_set_by_name_is_loaded_and_cached(tmp_path, tokenizer_dir, monkeypatch):
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    rows = [{"q": f"w{i} w1", "a": {"best": f"w{i} w2"}, "part": f"p{i % 2}", "topic": i % 3} for i in range(10)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")  # the variable is read at import
    source = PairSource(hub=str(folder), query="q", corpus="a.best", kind="part", label="topic")
    config = dataclasses.replace(CONFIG, sources={"mine": source}, validation_fraction=0.0)
    for _ in range(2):
        report = preprocess(config, tokenizer_dir, tmp_path / "out", tmp_path / "cache")
        assert report["total"]["train"] == 10
    assert len(list((tmp_path / "cache").iterdir())) == 1
    frame = pl.read_parquet(tmp_path / "out" / "train" / "part-00000.parquet")
    assert frame.row(3, named=True) | {"negatives": None} == {
        "query": "w3 w1", "corpus": "w3 w2", "negatives": None, "source": "mine", "kind": "p1", "label": "0"
    }  # fmt: skip


def test_no_network_is_one_line(monkeypatch):
    def unreachable(what: str) -> None:
        raise PipelineError(f"{what} needs the hub")

    monkeypatch.setattr(hub, "probe_hub", unreachable)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    with pytest.raises(PipelineError, match=r"contrastive_data\.sources: 'embedding-data/PAQ_pairs'.* needs the hub"):
        read_source("PAQ", PairSource(hub="PAQ"), CONFIG)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"hub": "GOOAK"}, "neither owner/name nor one of ALLNLI"),
        ({"hub": "GOOAQ", "query": "question"}, "columns are known"),
        ({}, "exactly one of them"),
        ({"path": "a", "hub": "GOOAQ"}, "exactly one of them"),
        ({"path": "a.jsonl", "split": "test"}, "belong to hub"),
        ({"path": "a.jsonl", "score": "s"}, "together"),
    ],
)
def test_contradictory_sources_are_refused(value, message):
    problems: list[str] = []
    parse(PairSource, value, "contrastive_data.sources.s", problems)
    assert any(message in problem for problem in problems), problems


def test_local_data_stays_local(tmp_path: Path):
    assert hub.parts_of(PairSource(hub="owner/name", split="test"))[0].table == Table("owner/name", None, "test")
