"""Preprocessing: column rules, validity, quarantine, duplicates, decontamination, determinism."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from neobert.config.contrastive_data import ContrastiveDataConfig, PairSource, Prompts
from neobert.contrastive.columns import expression
from neobert.contrastive.decontaminate import evaluation_texts
from neobert.contrastive.pairs import Pairs
from neobert.contrastive.preprocess import preprocess
from neobert.contrastive.schema import shape_of, validate
from neobert.contrastive.sources import read_source_file
from neobert.contrastive.tokens import text_hash
from neobert.errors import PipelineError
from neobert.io import verify_manifest


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def config(**sources: PairSource) -> ContrastiveDataConfig:
    return ContrastiveDataConfig(sources=sources, decontaminate=[], validation_fraction=0.0)


def rows(n: int, start: int = 0) -> list[dict]:
    return [{"query": f"w{i % 100} w1 {i}", "corpus": f"w{i % 100} w2 w3 {i}"} for i in range(start, start + n)]


def run(tmp_path: Path, tokenizer_dir: Path, cfg: ContrastiveDataConfig, out: str = "pairs") -> tuple[Path, dict]:
    report = preprocess(cfg, tokenizer_dir, tmp_path / out, tmp_path / "cache")
    return tmp_path / out, report


def test_column_rules():
    frame = pl.DataFrame({"a": [{"b": [{"t": "x"}, {"t": "y"}]}], "c": [["p", "q"]]})
    assert frame.select(expression("a.b[0].t")).item() == "x"
    assert frame.select(expression("a.b[*].t")).item().to_list() == ["x", "y"]
    assert frame.select(expression("c[5]")).item() is None
    with pytest.raises(PipelineError, match=r"a\.\[x"):
        expression("a.[x")


def test_bad_rows_are_quarantined_with_their_rule(tmp_path, tokenizer_dir):
    bad = [
        {"query": None, "corpus": "w1 w2"},
        {"query": "  ", "corpus": "w1 w2"},
        {"query": "w5 w6", "corpus": "w5 w6 "},
        {"query": "w7", "corpus": "w"},
    ]
    path = jsonl(tmp_path / "p.jsonl", rows(5) + bad)
    cfg = dataclasses.replace(config(mine=PairSource(path=str(path))), max_bad_fraction=0.5)
    out, report = run(tmp_path, tokenizer_dir, cfg)
    found = pl.read_parquet(out / "quarantine" / "part-00000.parquet")
    assert found["row"].to_list() == [6, 7, 8, 9]
    rules = found["rule"].to_list()
    assert "query: not null" in rules[0]
    assert "query: not blank" in rules[1]
    assert rules[2:] == ["corpus differs from query", "corpus: 2 to 200000 characters"]
    assert report["total"]["bad"] == 4
    assert report["total"]["train"] == 5
    with pytest.raises(PipelineError, match=r"max_bad_fraction.*p\.jsonl:6 \(query: not null\)"):
        run(tmp_path, tokenizer_dir, dataclasses.replace(cfg, max_bad_fraction=0.1))


def test_texts_differ_in_more_than_case_and_white_space():
    rows = [
        ("w1 w2", ["w3 w4"], ["w3 w5"]),
        ("w1 w2", ["w6", "W1  w2 "], ["w3 w5"]),
        ("w1 w2", ["w3 w4"], ["w7", " w3\tW4"]),
    ]
    lists = pl.DataFrame(rows, schema=["query", "corpus", "negative"], orient="row")
    for frame in (lists, lists.with_columns(pl.col("corpus", "negative").list.last())):
        good, bad = validate(frame, shape_of(frame, "frame"), minimum=1, maximum=100, where="frame")
        assert good.equals(frame[:1])
        assert bad["rule"].to_list() == ["corpus differs from query", "negative differs from corpus"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"query": "a b", "corpus": "c d"}, "{oops"], r"p\.jsonl:2: is not valid JSON"),
        (
            [{"query": "a b", "corpus": "c d"}, {"query": "a \ud83d", "corpus": "c"}],
            r"p\.jsonl:2: .*surrogates not allow",
        ),
        (
            [{"query": "a b", "corpus": "c d"}, {"query": 3, "corpus": "c d"}],
            r"p\.jsonl:2: column 'query' holds number, but text on line 1",
        ),
        ([{"query": "a b", "text": "c d"}], r"no column 'corpus'; its columns are query, text"),
        ([{"query": "a b", "corpus": 1.5}], r"p\.jsonl: column rule for 'corpus' gives Float64"),
        ([{"query": "a b", "corpus": ["x", 3]}], r"p\.jsonl:1: a list in column 'corpus' holds number, but text on"),
        (
            [{"query": "a b", "corpus": {"t": "c d"}}, "", {"query": "a b", "corpus": {"t": 4}}],
            r"p\.jsonl:3: column 'corpus': 't' holds number, but text on line 1",
        ),
        (
            [{"query": "a b", "corpus": {"t": "c d", "n": 2**70}}],
            r"p\.jsonl: column 'corpus' holds a number too large",
        ),
        (["[1]"], r"p\.jsonl:1: is a JSON list"),
        (
            [{"query": "a b", "corpus": "c d"}, '{"x": ' + "[" * 99_999 + "]" * 99_999 + "}"],
            r"p\.jsonl:2: .* recursion",
        ),
        (
            [{"query": "a b", "corpus": None}, '{"query": "a b", "corpus": ' + "[" * 900 + "]" * 900 + "}"],
            r"p\.jsonl:2: a list in .* nested deeper than 64",
        ),
        ([], "is empty"),
    ],
)
def test_unusable_files_fail_with_file_and_line(tmp_path, tokenizer_dir, lines, message):
    path = jsonl(tmp_path / "p.jsonl", lines)
    with pytest.raises(PipelineError, match=message):
        run(tmp_path, tokenizer_dir, config(mine=PairSource(path=str(path))))


def test_files_of_a_source_must_agree(tmp_path, tokenizer_dir):
    jsonl(tmp_path / "a.jsonl", rows(2))
    jsonl(tmp_path / "b.jsonl", [{"query": "w1 w2", "corpus": ["w3 w4"]}])
    with pytest.raises(PipelineError, match=r"b\.jsonl: has the shape .*corpus: list"):
        run(tmp_path, tokenizer_dir, config(mine=PairSource(path=str(tmp_path / "*.jsonl"))))
    with pytest.raises(PipelineError, match=r"sources\.mine\.path.*matches no file"):
        run(tmp_path, tokenizer_dir, config(mine=PairSource(path=str(tmp_path / "none.jsonl"))))


def test_shapes_scores_and_duplicates(tmp_path, tokenizer_dir):
    pl.DataFrame(
        {
            "q": ["w1 w2", "w3 w4", "w3  W4"],
            "good": [["w5 w6", "w7 w8"], ["w9 w10"], ["W9 w10"]],
            "bad": [["w11 w12"], [], []],
            "s": [5, 4, 5],
        }
    ).write_parquet(tmp_path / "l.parquet")
    jsonl(tmp_path / "s.jsonl", [{"query": "w1 w2", "corpus": "w5 w6", "n1": "w20 w21", "n2": "w22 w23"}])
    cfg = config(
        lists=PairSource(
            path=str(tmp_path / "l.parquet"), query="q", corpus="good", negative="bad", score="s", min_score=4.5
        ),
        more=PairSource(path=str(tmp_path / "s.jsonl"), negative=["n1", "n2"]),
    )
    cfg = dataclasses.replace(cfg, max_document_length=4, prompts=Prompts(query="q: "))
    out, report = run(tmp_path, tokenizer_dir, cfg)
    assert report["sources"]["lists"] | {"bad_by_rule": 0} == {
        "rows": 3, "bad": 0, "bad_by_rule": 0, "below_min_score": 1, "duplicates": 0, "contaminated": 0,
        "train": 3, "validation": 0,
    }  # fmt: skip
    assert report["sources"]["more"]["duplicates"] == 1  # the first source has it, with the negatives of both
    pairs = Pairs(out, "train")
    texts = pairs.take(range(pairs.rows))
    vocabulary = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    assert texts.queries[0].tolist() == vocabulary.encode("q: w1 w2").ids
    assert texts.positives[1].tolist() == vocabulary.encode("w7 w8").ids
    assert [len(n) for n in texts.negatives] == [3, 1, 0]
    assert pairs.hashes(0).shape == (5,)
    assert pairs.classes[0] == pairs.classes[1] != pairs.classes[2]  # one query, two positives
    assert pairs.negative_counts().tolist() == [3, 1, 0]
    verify_manifest(out)


def test_the_triplets_of_one_pair_become_one_pair_with_their_negatives(tmp_path, tokenizer_dir):
    pair, other = rows(2)
    triplets = [pair | {"negative": "w50"}, other | {"negative": "w51"}, pair | {"negative": "w52"}]
    triplets += [pair | {"query": pair["query"].upper(), "negative": text} for text in ("w50", "w53")]
    path = jsonl(tmp_path / "p.jsonl", triplets)
    out, report = run(tmp_path, tokenizer_dir, config(mine=PairSource(path=str(path), negative="negative")))
    kept = pl.read_parquet(out / "train" / "part-00000.parquet")
    assert kept["query"].to_list() == [pair["query"], other["query"]]
    assert kept["negatives"].to_list() == [["w50", "w52", "w53"], ["w51"]]
    assert report["sources"]["mine"]["duplicates"] == 3
    assert Pairs(out, "train").negative_counts().tolist() == [3, 1]


def test_a_file_is_read_by_its_own_name_not_as_a_glob(tmp_path, tokenizer_dir):
    names = ["d1.parquet", "d[1].parquet", "d*.parquet", "d?.parquet"]
    for i, name in enumerate(names):
        pl.DataFrame(rows(1, i)).write_parquet(tmp_path / "written")
        (tmp_path / "written").rename(tmp_path / name)

    def queries(path: str) -> set[str]:
        out, _ = run(tmp_path, tokenizer_dir, config(mine=PairSource(path=str(tmp_path / path))))
        return set(pl.read_parquet(out / "train" / "part-00000.parquet")["query"])

    expected = [r["query"] for r in rows(4)]
    assert queries("**/d*[!z].parquet") == set(expected)
    assert [queries(name) for name in names] == [{query} for query in expected]
    (tmp_path / "d[1].parquet").unlink()
    assert queries("d[1].parquet") == {expected[0]}


@pytest.mark.parametrize(("side", "length"), [("query", "max_query_length"), ("document", "max_document_length")])
def test_a_prompt_that_leaves_no_room_for_the_text_is_refused(tmp_path, tokenizer_dir, side, length):
    cfg = config(mine=PairSource(path=str(jsonl(tmp_path / "p.jsonl", rows(4)))))
    # Two of the 16 tokens are special.
    cfg = dataclasses.replace(cfg, **{length: 16}, prompts=Prompts(**{side: "q " * 7}))
    message = rf"prompts\.{side}: takes 9 of the 16 tokens of contrastive_data\.{length}.* 8 .*shorten"
    with pytest.raises(PipelineError, match=message):
        run(tmp_path, tokenizer_dir, cfg)
    out, _ = run(tmp_path, tokenizer_dir, dataclasses.replace(cfg, prompts=Prompts(**{side: "q " * 6})))
    assert Pairs(out, "train").rows == 4


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_negatives_of_a_pair_that_several_sources_have_are_joined(tmp_path, tokenizer_dir, order):
    data = rows(4)
    shouted = [{**r, "query": r["query"].upper(), "negative": [f"w50 {i}", "w60"]} for i, r in enumerate(data[:3])]
    given = {
        "a": [r | {"negative": [["w60"], [], ["w70"], ["w80"]][i]} for i, r in enumerate(data)],
        "b": [*shouted, rows(1, 50)[0] | {"negative": []}],
    }
    sources = {
        name: PairSource(path=str(jsonl(tmp_path / f"{name}.jsonl", given[name])), negative="negative")
        for name in order
    }
    out, report = run(tmp_path, tokenizer_dir, config(**sources))
    frame = pl.read_parquet(out / "train" / "part-00000.parquet")
    assert frame["source"].to_list() == [order[0]] * 4 + [order[1]]
    found = {row["query"].lower(): row["negatives"] for row in frame.rows(named=True)}
    assert [set(found[r["query"]]) for r in rows(4) + rows(1, 50)] == [
        {"w60", "w50 0"}, {"w50 1", "w60"}, {"w70", "w50 2", "w60"}, {"w80"}, set()
    ]  # fmt: skip
    if order == "ab":
        assert found[data[2]["query"]] == ["w70", "w50 2", "w60"]
    assert report["sources"][order[1]]["duplicates"] == 3
    pairs = Pairs(out, "train")
    vocabulary = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    for i, texts in enumerate(frame["negatives"].to_list()):
        assert [ids.tolist() for ids in pairs.take([i]).negatives[0]] == [vocabulary.encode(t).ids for t in texts]
        assert pairs.hashes(i).tolist()[2:] == [text_hash(text) for text in texts]


@pytest.mark.parametrize("turn", [1, -1])
def test_a_columns_type_does_not_depend_on_which_row_comes_first(tmp_path, turn):
    lines = [
        {"query": "w1 w2", "corpus": {"id": 1, "text": "w3 w4"}, "bad": [], "score": 5, "m": {"s": [5]}},
        {"query": "w1 w2", "corpus": {"text": "w3 w5"}, "bad": [{"id": 1}], "score": 4.8, "m": {"s": [4.5, 3]}},
        {"query": "w1 w2", "corpus": None, "bad": [{"text": "w6"}], "score": None, "m": {"t": True, "s": [1]}},
        {"query": "w1 w2", "corpus": {"id": 2**63}, "bad": [{"text": None}, {"id": 3}], "score": 2**64, "m": None},
    ][::turn]
    path = jsonl(tmp_path / "p.jsonl", lines)
    source = PairSource(path=str(path), corpus="corpus.text", negative="bad[*].text", score="score", label="corpus.id")
    frame = read_source_file(path, source)[::turn]
    assert frame["corpus"].to_list() == ["w3 w4", "w3 w5", None, None]
    assert frame["negative"].to_list() == [[], [None], ["w6"], [None, None]]
    assert frame["score"].to_list() == [5.0, 4.8, None, 2.0**64]
    assert frame["label"].to_list() == ["1", None, None, str(2**63)]
    nested = dataclasses.replace(source, score="m.s[0]")
    assert read_source_file(path, nested)[::turn]["score"].to_list() == [5.0, 4.5, 1.0, None]


def test_labels_become_classes(tmp_path, tokenizer_dir):
    words = [r | {"topic": i % 2} for i, r in enumerate(rows(4))]
    bad = [r | {"topic": topic} for r, topic in zip(rows(2, 50), (None, 3), strict=True)]
    del bad[1]["corpus"]
    a = jsonl(tmp_path / "a.jsonl", words + bad)
    b = jsonl(tmp_path / "b.jsonl", [r | {"topic": "1"} for r in rows(2, 20)])
    c = jsonl(tmp_path / "c.jsonl", rows(2, 30))
    cfg = config(
        a=PairSource(path=str(a), label="topic"), b=PairSource(path=str(b), label="topic"), c=PairSource(path=str(c))
    )
    out, report = run(tmp_path, tokenizer_dir, dataclasses.replace(cfg, max_bad_fraction=0.5))
    assert report["sources"]["a"]["bad_by_rule"] == {"corpus: not null": 1, "label: not null": 1}
    frame = pl.read_parquet(out / "train" / "part-00000.parquet")
    assert frame["label"].to_list() == ["0", "1", "0", "1", "1", "1", None, None]
    classes = Pairs(out, "train").classes.tolist()
    assert [classes.index(x) for x in classes] == [0, 1, 0, 1, 4, 4, 6, 7]  # b's 1 is not a's
    assert Pairs(out, "train").manifest["labelled"] == ["a", "b"]


@pytest.mark.parametrize(("label", "message"), [(1.5, "gives Float64, which is neither strings nor integers"),
                                                 (["x"], "which is neither")])  # fmt: skip
def test_a_label_of_another_type_is_refused(tmp_path, tokenizer_dir, label, message):
    path = jsonl(tmp_path / "p.jsonl", [rows(1)[0] | {"topic": label}])
    with pytest.raises(PipelineError, match=rf"p\.jsonl: column rule for 'label' .*{message}"):
        run(tmp_path, tokenizer_dir, config(mine=PairSource(path=str(path), label="topic")))


@pytest.mark.parametrize(
    ("rule", "values", "message"),
    [
        ("kind", [["x"], []], r"p\.jsonl: column rule for 'kind' gives List\(String\)"),
        ("kind", [{"x": 1}, None], r"p\.jsonl: column rule for 'kind' gives Struct"),
        ("label", [2**64 - 1, -1], r"p\.jsonl:2: column 'topic' holds -1, but 18446744073709551615 on line 1"),
        ("label", [{"id": -1}, {"id": 2**64}], r"p\.jsonl:1: column 'topic': 'id' holds -1, but 184467.* on line 2"),
    ],
)
def test_a_kind_or_label_of_no_use_is_refused_with_its_file(tmp_path, rule, values, message):
    path = jsonl(tmp_path / "p.jsonl", [r | {"topic": v} for r, v in zip(rows(2), values, strict=True)])
    with pytest.raises(PipelineError, match=message):
        read_source_file(path, PairSource(path=str(path), **{rule: "topic"}))


@pytest.mark.parametrize(
    ("rule", "full", "empty"),
    [
        ("negative", ["w50"], []),
        ("negative[*].text", [{"text": "w50", "id": 1}], []),
        ("negative.deep[*].text", {"deep": [{"text": "w50"}]}, {"deep": []}),
        ("negative[0].list", [{"list": ["w50"]}], [{"list": []}]),
        ("negative[0].list", [{"list": ["w50"]}], [{"list": [], "more": 1}]),
    ],
)
def test_a_file_without_any_negative_is_one_of_its_source(tmp_path, tokenizer_dir, rule, full, empty):
    jsonl(tmp_path / "a.jsonl", [r | {"negative": full} for r in rows(2)])
    jsonl(tmp_path / "b.jsonl", [r | {"negative": empty} for r in rows(2, 50)])
    for name, expected in (("*", [["w50"], ["w50"], [], []]), ("b", [[], []])):
        source = PairSource(path=str(tmp_path / f"{name}.jsonl"), negative=rule)
        out, _ = run(tmp_path, tokenizer_dir, config(mine=source))
        assert pl.read_parquet(out / "train" / "part-00000.parquet")["negatives"].to_list() == expected


def test_parquets_dictionaries_and_lists_of_fixed_size_are_read(tmp_path, tokenizer_dir):
    data, path = rows(3), tmp_path / "p.parquet"
    negatives = [[f"w50 {i}", f"w60 {i}"] for i in range(3)]
    frame = pl.DataFrame(data).with_columns(
        pl.col("query").cast(pl.Categorical),
        pl.col("corpus").cast(pl.Enum([r["corpus"] for r in data])),
        negative=pl.Series(negatives, dtype=pl.Array(pl.String, 2)),
        more=pl.Series([{"bad": n} for n in negatives], dtype=pl.Struct({"bad": pl.Array(pl.Categorical, 2)})),
        topic=pl.Series(["x", "y", "x"], dtype=pl.Categorical),
    )
    frame.write_parquet(path)
    assert pq.read_schema(path).field("negative").type == pa.list_(pa.large_string(), 2)
    found = {}
    for rule in ("negative", "more.bad", "more.bad[1]"):
        source = PairSource(path=str(path), negative=rule, label="topic", kind="topic")
        out, _ = run(tmp_path, tokenizer_dir, config(mine=source))
        found[rule] = pl.read_parquet(out / "train" / "part-00000.parquet")
    assert found["negative"].select("query", "corpus").rows(named=True) == data
    assert found["negative"].select("kind", "label").rows() == [("x", "x"), ("y", "y"), ("x", "x")]
    assert found["negative"]["negatives"].to_list() == found["more.bad"]["negatives"].to_list() == negatives
    assert found["more.bad[1]"]["negatives"].to_list() == [[n[1]] for n in negatives]


def test_evaluation_texts_are_dropped(tmp_path, tokenizer_dir):
    path = jsonl(tmp_path / "p.jsonl", [r | {"n": f"w50 w51 {i}"} for i, r in enumerate(rows(6))])
    task = tmp_path / "tasks" / "t"
    task.mkdir(parents=True)
    jsonl(task / "queries.jsonl", [{"_id": "1", "text": "W0  w1 0"}])
    jsonl(task / "corpus.jsonl", [{"_id": "1", "title": "w1 w2", "text": "w3 1"}, {"_id": "2", "text": "w50 w51 4"}])
    cfg = dataclasses.replace(
        config(mine=PairSource(path=str(path), negative="n")), decontaminate=[str(tmp_path / "tasks")]
    )
    out, report = run(tmp_path, tokenizer_dir, cfg)
    assert report["total"]["contaminated"] == 3
    kept = pl.read_parquet(out / "train" / "part-00000.parquet")["query"].to_list()
    assert kept == [r["query"] for r in rows(6)[2:4] + rows(6)[5:]]
    with pytest.raises(PipelineError, match="decontaminate: 'nowhere'"):
        run(tmp_path, tokenizer_dir, dataclasses.replace(cfg, decontaminate=["nowhere"]))


def test_texts_of_every_kind_of_task_are_dropped(tmp_path, tokenizer_dir):
    path = jsonl(tmp_path / "p.jsonl", rows(8))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    queries = [row["query"] for row in rows(8)]
    jsonl(tasks / "sts.jsonl", [{"sentence1": queries[0], "sentence2": queries[1], "score": 3.0}])
    jsonl(tasks / "reranking.jsonl", [{"query": queries[2], "positive": [queries[3]], "negative": ["x", queries[4]]}])
    jsonl(tasks / "classification.jsonl", [{"text": queries[5], "label": "a"}, ""])
    cfg = dataclasses.replace(config(mine=PairSource(path=str(path))), decontaminate=[str(tasks)])
    out, _ = run(tmp_path, tokenizer_dir, cfg)
    assert pl.read_parquet(out / "train" / "part-00000.parquet")["query"].to_list() == queries[6:]
    jsonl(tasks / "odd.jsonl", ["[1]"])
    with pytest.raises(PipelineError, match=r"odd\.jsonl:1: is a JSON list"):
        run(tmp_path, tokenizer_dir, cfg)
    for half in (b"\\ud83d", b"\xed\xa0\xbd"):  # half of a surrogate pair, escaped and in bytes
        (tasks / "odd.jsonl").write_bytes(b'{"text": "%b"}\n' % half)
        with pytest.raises(PipelineError, match=r"odd\.jsonl:1: is not valid JSON"):
            run(tmp_path, tokenizer_dir, cfg)


def test_evaluation_texts_are_found_behind_links_and_none_is_passed_over(tmp_path, caplog):
    real, tasks = tmp_path / "real", tmp_path / "tasks"
    real.mkdir()
    tasks.mkdir()
    pl.DataFrame({"query": ["w1"]}).write_parquet(tasks / "test.parquet")
    (tasks / "queries.jsonl.gz").write_bytes(b"")
    jsonl(tasks / "scores.jsonl", [{"id": 1}])
    with pytest.raises(
        PipelineError, match=r"decontaminate: '.*tasks' holds no text .*test\.parquet.*JSONL.*sentence1"
    ):
        evaluation_texts([str(tasks)])
    jsonl(real / "queries.jsonl", [{"_id": "1", "text": "W1  w2"}])
    (tasks / "linked").symlink_to(real)
    (real / "back").symlink_to(tasks)  # a loop
    assert evaluation_texts([str(tasks)]).to_list() == ["w1 w2"]
    assert "test.parquet" in caplog.text
    (tasks / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PipelineError, match=r"gone\.jsonl: cannot be read"):
        evaluation_texts([str(tasks)])


def test_split_is_by_query_and_bytes_repeat(tmp_path, tokenizer_dir):
    data = rows(400) + [{"query": r["query"], "corpus": r["corpus"] + " again"} for r in rows(400)]
    path = jsonl(tmp_path / "p.jsonl", data)
    cfg = dataclasses.replace(config(mine=PairSource(path=str(path))), validation_fraction=0.2, max_validation_pairs=60)
    first, report = run(tmp_path, tokenizer_dir, cfg, "first")
    second = tmp_path / "second"
    preprocess(cfg, tokenizer_dir, second, tmp_path / "other cache")
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()
    sides = [pl.read_parquet(first / side / "part-00000.parquet")["query"] for side in ("train", "validation")]
    assert not set(sides[0]) & set(sides[1])
    assert 50 <= len(sides[1]) <= 60
    assert report["total"]["train"] + report["total"]["validation"] == 800


def test_a_new_source_leaves_the_others_cached(tmp_path, tokenizer_dir, monkeypatch):
    a = PairSource(path=str(jsonl(tmp_path / "a.jsonl", rows(5))))
    b = PairSource(path=str(jsonl(tmp_path / "b.jsonl", rows(5, 50))))
    run(tmp_path, tokenizer_dir, config(a=a))
    read = []
    import neobert.contrastive.preprocess as module

    original = module.read_source
    monkeypatch.setattr(module, "read_source", lambda name, *rest: read.append(name) or original(name, *rest))
    out, report = run(tmp_path, tokenizer_dir, config(a=a, b=b))
    assert read == ["b"]
    assert report["total"]["train"] == 10
    assert Pairs(out, "train").groups.tolist() == [0] * 5 + [1] * 5
    assert Pairs(out, "train").names == ["a", "b"]
    assert np.array_equal(Pairs(out, "train").take([0]).queries[0], Pairs(out, "train").take([0]).queries[0])


def test_one_bad_row_among_many_is_found():
    number = pl.int_range(100_000)
    frame = pl.select(
        query=pl.format("query number {} of many", number),
        corpus=pl.format("the document number {} with more words", number),
        negative=pl.concat_list(pl.format("wrong document {}", number), pl.format("other document {}", number)),
    ).with_columns(query=pl.when(number == 77).then(pl.lit("   ")).otherwise("query"))
    good, bad = validate(frame, shape_of(frame, "frame"), minimum=2, maximum=1000, where="frame")
    assert good.equals(frame.filter(number != 77))
    assert bad.select("corpus", "rule").rows() == [("the document number 77 with more words", "query: not blank")]


@pytest.mark.parametrize("kind", ["string", "list"])
def test_texts_that_differ_late_differ_and_white_space_and_case_never_count(kind):
    long = "the same beginning of some length, then "
    cases = [
        (long + "one", long + "two", False),
        (long + "One", long.replace(" ", "  ") + "one", True),
        ("a" + " " * 90 + "b", "A b", True),
        ("a" + " " * 90 + "b", "a c", False),
        ("\u03a3\u03a3", "\u03c3\u03c2", True),
    ]
    wrap = (lambda text: text) if kind == "string" else (lambda text: ["another", text])
    frame = pl.DataFrame({"query": [c[0] for c in cases], "corpus": [wrap(c[1]) for c in cases]})
    _, bad = validate(frame, shape_of(frame, "x"), minimum=1, maximum=500, where="x")
    assert bad["query"].to_list() == [c[0] for c in cases if c[2]]
