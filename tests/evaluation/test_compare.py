"""Paired bootstrap: known intervals, examples that add up to MTEB's figures for every type and metric, the command."""

import json
import sys

import numpy as np
import pytest
from ruamel.yaml import YAML

from neobert.config.evaluation import METRICS, EvaluationConfig, LocalTask
from neobert.errors import PipelineError
from neobert.evaluation import compare as command
from neobert.evaluation.compare import compare
from neobert.evaluation.models import EncodeSettings, open_model
from neobert.evaluation.paired import Examples, bootstrap
from neobert.model.storage import EmbeddingInfo
from tests.evaluation.conftest import make_model, make_tokenizer, sentences
from tests.evaluation.test_export_hop import write_export
from tests.evaluation.test_local_tasks import labelled, pairs, retrieval, write_jsonl


def mean_of(values):
    return Examples(len(values), lambda indices: float(values[indices].mean()))


def test_interval_is_that_of_the_mean_of_differences():
    draw = np.random.default_rng(0)
    common = draw.normal(0, 10, 400)  # shared difficulty: a paired interval does not see it
    a, b = common + draw.normal(0, 0.1, 400), common + 0.05 + draw.normal(0, 0.1, 400)
    found = bootstrap(mean_of(a), mean_of(b), seed=1)
    half = 1.96 * (b - a).std() / 20
    assert found.b - found.a == pytest.approx((b - a).mean())
    assert found.low == pytest.approx((b - a).mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx((b - a).mean() + half, abs=0.15 * half)
    assert found.clear
    assert bootstrap(mean_of(a), mean_of(b), seed=1) == found


def test_intervals_cover_zero_as_often_as_they_say():
    draw = np.random.default_rng(3)
    samples = draw.normal(0, 1, (200, 2, 60))
    clear = sum(bootstrap(mean_of(a), mean_of(b), seed=0, resamples=300).clear for a, b in samples)
    assert 2 <= clear <= 22  # 5% of 200, within 4 sigma


def test_different_examples_are_refused():
    with pytest.raises(PipelineError, match="answered 3 and 4 examples"):
        bootstrap(mean_of(np.ones(3)), mean_of(np.ones(4)), seed=0)


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("other") / "contrastive"
    make_model(directory, EmbeddingInfo("mean", True), seed=5)
    return directory


def declare(path, kind):
    """One task of a kind over files below ``path``."""
    if kind == "retrieval":
        retrieval(path, sentences(12, longest=8))
    elif kind == "reranking":
        texts = sentences(60, seed=4, longest=9)
        rows = [
            {"query": t, "positive": [texts[i]], "negative": texts[i + 1 : i + 5]} for i, t in enumerate(texts[40:])
        ]
        write_jsonl(path / "test.jsonl", rows)
    elif kind in ("sts", "pair_classification"):
        column = "score" if kind == "sts" else "label"
        pairs(path, column, lambda a, b: (len(a) * 7 + len(b)) % 5 if kind == "sts" else (len(a) + len(b)) % 2)
    else:
        labelled(path)


@pytest.mark.parametrize("kind", METRICS)
def test_examples_add_up_to_mtebs_figure(tmp_path, model_dir, other_dir, kind, monkeypatch):
    monkeypatch.setattr(command.bootstrap, "__defaults__", (15,))
    declare(tmp_path / kind, kind)
    tasks = [LocalTask(metric, kind, str(tmp_path / kind), metric) for metric in METRICS[kind]]
    config = EvaluationConfig(tasks=[t for t in tasks if not t.name.endswith(("_3", "_5", "_100"))])
    found = compare(str(model_dir), str(other_dir), config, seed=1)  # raises where examples and figure disagree
    assert found.keys() == {t.name for t in config.tasks}
    assert all(d.low <= d.b - d.a <= d.high or d.examples == 10 for d in found.values())


def test_a_model_against_itself_differs_by_nothing(tmp_path, model_dir):
    declare(tmp_path / "find", "retrieval")
    config = EvaluationConfig(tasks=[LocalTask("find", "retrieval", str(tmp_path / "find"))])
    found = compare(str(model_dir), str(model_dir), config, seed=1)["find"]
    assert (found.low, found.high, found.clear) == (0, 0, False)


def test_the_command_prints_a_table_and_names_errors(tmp_path, model_dir, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    declare(tmp_path / "find", "retrieval")
    declare(tmp_path / "sort", "classification")
    tasks = [{"name": n, "type": t, "path": n} for n, t in (("find", "retrieval"), ("sort", "classification"))]
    with open("params.yaml", "w") as handle:
        YAML().dump({"seed": 1, "evaluation": {"tasks": tasks}}, handle)
    monkeypatch.setattr(sys, "argv", ["compare", "bm25", str(model_dir), "--json", "out.json"])
    command.main()
    assert "| find | ndcg_at_10 | " in capsys.readouterr().out
    assert list(json.loads((tmp_path / "out.json").read_text())) == ["find"]
    monkeypatch.setattr(sys, "argv", ["compare", "bm25", str(tmp_path)])
    with pytest.raises(SystemExit):
        command.main()
    assert "cannot be loaded by sentence-transformers" in capsys.readouterr().err


def test_models_open_by_what_they_are(tmp_path, model_dir):
    settings = EncodeSettings.of(EvaluationConfig(max_length=20, prompts={"query": "dog "}))
    ours = open_model(str(model_dir), "a", settings)
    write_export(model_dir, tmp_path / "export")
    theirs = open_model(str(tmp_path / "export"), "b", settings)
    assert theirs.model.max_seq_length == ours.embedder.max_length == 20
    assert theirs.model_prompts == ours.prompts == {"query": "dog "}
    assert theirs.mteb_model_meta.name == "neobert/b"
    texts = sentences(9)
    np.testing.assert_allclose(theirs.model.encode(texts), ours.embedder.encode(texts), atol=1e-5)
    make_model(tmp_path / "plain", None)
    assert open_model(str(tmp_path / "plain"), "c", settings).prompts == {"query": "dog "}


def test_a_model_of_static_embeddings_reads_no_more_than_asked(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    static = StaticEmbedding(make_tokenizer(tmp_path / "tokenizer"), embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"))
    settings = EncodeSettings.of(EvaluationConfig(max_length=3))
    model = open_model(str(tmp_path / "static"), "static", settings).model
    short, long = model.encode(["the dog cat", "the dog cat red x dog"])
    np.testing.assert_array_equal(short, long)
    whole = open_model(str(tmp_path / "static"), "static", EncodeSettings.of(EvaluationConfig())).model
    assert not np.array_equal(whole.encode("the dog cat"), whole.encode("the dog cat red x dog"))
