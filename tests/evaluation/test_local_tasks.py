"""Local MTEB tasks: layouts are read, metrics are those of independent references, bad lines are named."""

import json
import random

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

from neobert.config.evaluation import LocalTask
from neobert.errors import PipelineError
from neobert.evaluation.bm25 import BM25Search, words
from neobert.evaluation.local_tasks import local_task
from neobert.evaluation.protocol import MTEBEncoder
from neobert.evaluation.run import Scores, run_tasks, write_results

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "run", "jump", "swim"]


class Bag:
    """A stand-in for an encoder: counts of known words, and a constant so that no embedding is zero."""

    def encode(self, texts, prompt="", description="encode"):
        rows = [[(prompt + t).split().count(w) for w in WORDS] + [0.1] for t in texts]
        return np.array(rows, dtype=np.float32)


def model():
    return MTEBEncoder(Bag(), "bag", "r1", {})


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def retrieval(path, queries=None):
    documents = [f"{a} {b}" for a in WORDS for b in WORDS if a < b]
    write_jsonl(path / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": t} for i, t in enumerate(documents)])
    queries = queries or [f"{a} {b} {c}" for a, b, c in zip(WORDS, WORDS[3:], WORDS[5:], strict=False)]
    write_jsonl(path / "queries.jsonl", [{"_id": f"q{i}", "text": t} for i, t in enumerate(queries)])
    lines = [f"q{i}\td{(7 * i) % len(documents)}\t1" for i in range(len(queries))]
    (path / "qrels").mkdir()
    (path / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return documents, queries


def labelled(path):
    rows = [
        {"text": f"{w} {o}", "label": ["colour", "animal", "verb"][i // 3]} for i, w in enumerate(WORDS) for o in WORDS
    ]
    write_jsonl(path / "train.jsonl", rows)
    write_jsonl(path / "test.jsonl", rows[::2])


def pairs(path, column, values):
    draw = random.Random(0)
    made = [[" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(2)] for _ in range(60)]
    rows = [{"sentence1": a, "sentence2": b, column: values(a, b)} for a, b in made]
    write_jsonl(path / "test.jsonl", rows)
    return rows


def score(spec, encoder=None):
    scores = Scores()
    run_tasks(scores, "bag", encoder or model(), [local_task(spec)], batch_size=8)
    scores.require_success()
    return scores.by_model["bag"][spec.name], scores


def cosine(first, second):
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    return first @ second.T


def test_retrieval_gives_the_ndcg_of_scikit_learn(tmp_path):
    documents, queries = retrieval(tmp_path)
    # A small slope per document breaks ties, which MTEB and scikit-learn would settle differently.
    value, _ = score(LocalTask("task", "retrieval", str(tmp_path)))
    similarity = cosine(Bag().encode(queries), Bag().encode(documents))
    truth = np.zeros_like(similarity)
    for i in range(len(queries)):
        truth[i, (7 * i) % len(documents)] = 1
    # MTEB breaks ties by document id; the bounds are the worst and best order within ties.
    low = ndcg_score(truth, similarity - 1e-4 * truth, k=10)
    high = ndcg_score(truth, similarity + 1e-4 * truth, k=10)
    assert low - 1e-5 <= value <= high + 1e-5


def test_bm25_finds_split_identifiers(tmp_path):
    write_jsonl(
        tmp_path / "corpus.jsonl",
        [{"_id": "a", "text": "def readNextLine(): pass"}, {"_id": "b", "text": "def write_all(x): pass"}],
    )
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "read the next line"}, {"_id": "e", "text": "..."}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\ne\tb\t1\n")
    value, _ = score(LocalTask("task", "retrieval", str(tmp_path)), BM25Search())
    assert value == pytest.approx(0.5)  # the query without a word finds nothing
    assert words("parseHTTPHeader x_2") == ["parse", "http", "header", "x", "2"]


def test_reranking_ranks_only_the_candidates(tmp_path):
    rows = [
        {"query": "red cat", "positive": ["red cat run"], "negative": ["blue", "green dog"]},
        {"query": "dog", "positive": ["blue"], "negative": ["dog run"]},
    ]
    write_jsonl(tmp_path / "test.jsonl", rows)
    spec = LocalTask("task", "reranking", str(tmp_path))
    assert score(spec)[0] == pytest.approx((1 + 0.5) / 2)
    assert score(spec, BM25Search())[0] == pytest.approx((1 + 0.5) / 2)


def test_sts_is_spearman_of_cosine(tmp_path):
    from scipy.stats import spearmanr

    rows = pairs(tmp_path, "score", lambda a, b: len(a) - 2.5 * len(b) + a.count("dog"))
    value, _ = score(LocalTask("task", "sts", str(tmp_path)))
    similarity = np.diag(cosine(*(Bag().encode([r[f"sentence{i}"] for r in rows]) for i in (1, 2))))
    assert value == pytest.approx(spearmanr(similarity, [r["score"] for r in rows])[0], abs=1e-3)


def test_pair_classification_is_average_precision(tmp_path):
    rows = pairs(tmp_path, "label", lambda a, b: int(len(a) % 3 == len(b) % 3))
    value, _ = score(LocalTask("task", "pair_classification", str(tmp_path), "cosine_ap"))
    similarity = np.diag(cosine(*(Bag().encode([r[f"sentence{i}"] for r in rows]) for i in (1, 2))))
    assert value == pytest.approx(average_precision_score([r["label"] for r in rows], similarity), abs=1e-3)


@pytest.mark.parametrize("kind", ["classification", "clustering"])
def test_labelled_tasks_separate_words(tmp_path, kind):
    labelled(tmp_path)
    value, scores = score(LocalTask("task", kind, str(tmp_path)))
    assert value > (0.5 if kind == "classification" else 0.05)
    again, _ = score(LocalTask("task", kind, str(tmp_path)))
    assert again == value
    write_results(tmp_path / "out", scores)
    text = (tmp_path / "out" / "bag" / "task.json").read_text()
    assert json.loads(text)["evaluation_time"] is None
    assert json.loads(text)["date"] is None


def test_a_failing_task_is_named_and_the_others_run(tmp_path):
    labelled(tmp_path)
    good, bad = (LocalTask(name, "clustering", str(tmp_path)) for name in ("good", "bad"))

    class Broken(Bag):
        def encode(self, texts, prompt="", description="encode"):
            if "bad" in description:
                return np.full((len(texts), 3), np.nan, dtype=np.float32)
            return super().encode(texts)

    scores = Scores()
    run_tasks(scores, "m", MTEBEncoder(Broken(), "m", "r", {}), [local_task(bad), local_task(good)], batch_size=8)
    assert "good" in scores.by_model["m"]
    with pytest.raises(PipelineError, match=r"bad failed with m: .*not finite"):
        scores.require_success()


def test_prompts_follow_mtebs_preference(tmp_path):
    retrieval(tmp_path)
    seen = set()

    class Spy(Bag):
        def encode(self, texts, prompt="", description="encode"):
            seen.add((prompt, len(texts)))
            return super().encode(texts)

    prompts = {"query": "q: ", "document": "d: ", "task-query": "asked: "}
    score(LocalTask("task", "retrieval", str(tmp_path)), MTEBEncoder(Spy(), "m", "r", prompts))
    assert {p for p, _ in seen} == {"asked: ", "d: "}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test.jsonl", '{"text": "a", "label": "x"}\n{oops\n', r"test.jsonl:2: is not JSON"),
        ("test.jsonl", '{"text": "a"}\n', r"test.jsonl:1: has no 'label'; its columns are text"),
        ("test.jsonl", '{"text": null, "label": "x"}\n', r"test.jsonl:1: text is None"),
        ("test.jsonl", "[1]\n", r"test.jsonl:1: is a list"),
        (
            "test.jsonl",
            '\n{"text": "half \\ud83d", "label": "x"}\n',
            r"test.jsonl:2: is not JSON .*surrogates not allow",
        ),
        ("test.jsonl", "\n", r"test.jsonl: is empty"),
        ("test.jsonl", '{"text": "a", "label": "x"}\n', r"has one label \(x\)"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(PipelineError, match=message):
        local_task(LocalTask("task", "clustering", str(tmp_path)))


def test_missing_files_and_bad_qrels_are_named(tmp_path):
    with pytest.raises(PipelineError, match="nowhere is not a directory"):
        local_task(LocalTask("task", "sts", str(tmp_path / "nowhere")))
    with pytest.raises(PipelineError, match=r"corpus.jsonl: does not exist"):
        local_task(LocalTask("task", "retrieval", str(tmp_path)))
    retrieval(tmp_path)
    qrels = tmp_path / "qrels" / "test.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\nq0\tnone\t1\n")
    with pytest.raises(PipelineError, match=r"test.tsv:2: document 'none' is not in"):
        local_task(LocalTask("task", "retrieval", str(tmp_path)))
    qrels.write_text("q0\td0\t1\n")
    with pytest.raises(PipelineError, match=r"test.tsv:1: .*header"):
        local_task(LocalTask("task", "retrieval", str(tmp_path)))
    (tmp_path / "queries.jsonl").write_bytes(b'{"_id": "q0", "text": "\xff"}\n')
    with pytest.raises(PipelineError, match=r"queries.jsonl: is not valid UTF-8"):
        local_task(LocalTask("task", "retrieval", str(tmp_path)))


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl"])
def test_an_id_of_two_rows_is_refused(tmp_path, file):
    retrieval(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / file).read_text().splitlines()]
    write_jsonl(tmp_path / file, [*rows, rows[1] | {"text": "another"}])
    with pytest.raises(PipelineError, match=rf"{file}: _id '{rows[1]['_id']}' is that of rows 2 and {len(rows) + 1};"):
        local_task(LocalTask("task", "retrieval", str(tmp_path)))
