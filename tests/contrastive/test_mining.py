"""Hard-negative mining: near documents, never a positive of the query, by BM25 and by an encoder."""

import dataclasses
import json
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from neobert.config.contrastive_data import ContrastiveDataConfig, MiningConfig, PairSource
from neobert.config.schema import parse
from neobert.contrastive.mining import _bm25, _candidates, mine
from neobert.contrastive.pairs import Pairs
from neobert.contrastive.preprocess import preprocess
from neobert.errors import PipelineError
from neobert.io import sha256_file
from neobert.model.heads import MaskedLM
from neobert.model.storage import EmbeddingInfo, load_model, save_model


def prepare(
    root: Path, tokenizer_dir: Path, mining: MiningConfig | None, label: str | None = None
) -> tuple[pl.DataFrame, dict]:
    rows = [{"query": f"w{i} w{i + 40}", "corpus": f"w{i} w{i + 1} w{90 + i % 5} w77"} for i in range(30)]
    rows.append({"query": "w3 w43", "corpus": "w3 w4 w99"})  # a second positive of the query of row 3
    rows = [row | {"topic": i // 2} for i, row in enumerate(rows)]
    (root / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = PairSource(path=str(root / "p.jsonl"), label=label)
    config = ContrastiveDataConfig(
        sources={"s": source}, decontaminate=[], validation_fraction=0.0, mine_negatives=mining
    )
    report = preprocess(config, tokenizer_dir, root / "pairs", root / "cache")
    return pl.read_parquet(root / "pairs" / "train" / "part-00000.parquet"), report


def test_bm25_finds_near_documents_but_no_positive(tmp_path, tokenizer_dir):
    mining = MiningConfig(num_negatives=2, relative_margin=None)
    frame, report = prepare(tmp_path, tokenizer_dir, mining)
    rows = frame.rows(named=True)
    # Document i - 1 shares the word w{i} with query i; nothing but positives does otherwise.
    assert rows[10]["negatives"] == [rows[9]["corpus"]]
    assert rows[3]["negatives"] == [rows[2]["corpus"]]
    assert report["total"]["mined_negatives"] == sum(len(row["negatives"]) for row in rows)
    pairs = Pairs(tmp_path / "pairs", "train")
    texts = pairs.take([10])
    assert texts.negatives[0][0].tolist() == pairs.take([9]).positives[0].tolist()
    assert pairs.hashes(10)[2] == pairs.hashes(9)[1]


def test_a_document_of_the_same_label_is_no_negative(tmp_path, tokenizer_dir):
    mining = MiningConfig(num_negatives=2, relative_margin=None)
    frame, _ = prepare(tmp_path, tokenizer_dir, mining, label="topic")
    rows = frame.rows(named=True)
    # As above, query i shares a word with document i - 1; here 0 and 1, 2 and 3, ... are of one label.
    assert rows[10]["negatives"] == [rows[9]["corpus"]]
    assert rows[9]["negatives"] == []


def test_a_query_is_not_its_own_negative(tmp_path, tokenizer_dir):
    rows = [
        {"query": "w1 w2", "corpus": "w3 w4"},
        {"query": "w5 w6", "corpus": "W1  w2"},  # the first query, as another's answer
        {"query": "w7 w8", "corpus": "w1 w9"},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = ContrastiveDataConfig(
        sources={"s": PairSource(path=str(tmp_path / "p.jsonl"))}, decontaminate=[], validation_fraction=0.0,
        mine_negatives=MiningConfig(relative_margin=None),
    )  # fmt: skip
    preprocess(config, tokenizer_dir, tmp_path / "pairs", tmp_path / "cache")
    frame = pl.read_parquet(tmp_path / "pairs" / "train" / "part-00000.parquet")
    assert frame["negatives"].to_list()[0] == ["w1 w9"]


def test_margin_and_ranks():
    scores = np.array([5.0, 4.9, 4.0, 0.0, 3.0, 4.0])
    config = MiningConfig(relative_margin=None, range_max=4)
    assert _candidates(scores, 0, config) == [0, 1, 2, 5]
    assert _candidates(scores, 0, dataclasses.replace(config, relative_margin=0.05)) == [2, 5]
    assert _candidates(scores, 0, dataclasses.replace(config, range_min=1, range_max=3)) == [1, 2]
    assert _candidates(scores, 0, dataclasses.replace(config, range_max=99)) == [0, 1, 2, 5, 4]


@pytest.mark.parametrize("values", [3, 40, 10**6])
@pytest.mark.parametrize("documents", [5, 700, 5000])
def test_ranks_are_those_of_a_full_sort_and_equal_scores_go_by_number(documents, values):
    rng = np.random.default_rng(documents + values)
    for wanted in (1, 20, 50, 6000):
        scores = (rng.integers(0, values, documents) * (rng.random(documents) < 0.5)).astype(np.float32) - 1
        ranked = np.lexsort((np.arange(documents), -scores))[:wanted]
        config = MiningConfig(relative_margin=None, range_max=wanted)
        assert _candidates(scores, 0, config) == ranked[scores[ranked] > 0].tolist()


def test_scores_are_in_memory_one_query_at_a_time():
    words = [np.array([2, i % 7, i % 11, 3], dtype=np.int32) for i in range(20_000)]
    tracemalloc.start()
    scores = _bm25(words[:600], words)
    found = [float(next(scores).max())]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    found += [float(of_query.max()) for of_query in scores]
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert len(found) == 600
    assert peak < 4 * 4 * len(words)


def test_an_encoder_mines_too(tmp_path, tokenizer_dir, world):
    model, info, _ = load_model(world / "model")
    sha = sha256_file(tokenizer_dir / "tokenizer.json")
    info = dataclasses.replace(info, tokenizer_sha256=sha, embedding=EmbeddingInfo())
    save_model(tmp_path / "miner", model.state_dict(), info, tokenizer_dir)
    assert isinstance(model, MaskedLM)
    prepare(tmp_path, tokenizer_dir, None)
    mining = MiningConfig(method="encoder", model=str(tmp_path / "miner"), num_negatives=3, relative_margin=None)
    frame, report = prepare(tmp_path, tokenizer_dir, mining)
    assert report["total"]["mined_negatives"] == 3 * 31
    for row in frame.rows(named=True):
        positives = set(frame.filter(pl.col("query") == row["query"])["corpus"])
        assert len(set(row["negatives"])) == 3
        assert not positives & set(row["negatives"])
    with pytest.raises(PipelineError, match="another tokenizer"):
        mine(_with_tokens(tmp_path), mining, "other")


def _with_tokens(root: Path) -> pl.DataFrame:
    frame = pl.read_parquet(root / "pairs" / "train" / "part-00000.parquet")
    tokens = pl.read_ipc(root / "pairs" / "train" / "part-00000.arrow")
    return pl.concat([frame, tokens], how="horizontal")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"method": "encoder"}, "needs it"),
        ({"model": "data/raw/m"}, "belongs to method encoder"),
        ({"method": "encoder", "model": "models/contrastive"}, "below data/raw"),
        ({"range_min": 50}, "more than range_min"),
    ],
)
def test_contradictory_mining_is_refused(value, message):
    problems: list[str] = []
    parse(MiningConfig, value, "contrastive_data.mine_negatives", problems)
    assert any(message in problem for problem in problems), problems
