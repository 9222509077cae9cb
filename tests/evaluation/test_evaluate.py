"""The whole evaluation on tiny models: all columns, checked hop to the export, reports, nothing stale."""

import json
import shutil

import numpy as np
import pytest
import sentence_transformers
from ruamel.yaml import YAML
from transformers import AutoTokenizer

from neobert.config.evaluation import EvaluationConfig, LocalTask
from neobert.errors import PipelineError
from neobert.evaluation import evaluate as evaluation
from neobert.evaluation import named_tasks
from neobert.evaluation.encode import TextEncoder
from neobert.evaluation.evaluate import ModelPaths, evaluate
from neobert.model.storage import load_embedding_model
from stages import evaluate as stage
from tests.evaluation.conftest import make_model, sentences
from tests.evaluation.test_local_tasks import labelled, retrieval


class ExportDouble:
    """Stands in for sentence-transformers on an exported directory: one text at a time through the trained model."""

    max_seq_length = 48
    prompts = {"query": "cat ", "document": ""}  # noqa: RUF012
    error = 0.0
    source = None

    def __init__(self, path, **_):
        embedder, info = load_embedding_model(self.source)
        tokenizer = AutoTokenizer.from_pretrained(self.source / "tokenizer")
        self.encoder = TextEncoder(embedder, tokenizer, max_length=info.max_length)

    def encode_query(self, texts, prompt="cat ", **_):
        return np.concatenate([self.encoder.encode([text], prompt) for text in texts]) + self.error

    def encode_document(self, texts, **_):
        return self.encode_query(texts, "")


@pytest.fixture
def workspace(tmp_path, model_dir, monkeypatch):
    """models/ and tasks/ in a directory, with a double for the export."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_dir, "models/contrastive")
    make_model(tmp_path / "models" / "long_context", None, seed=3)
    shutil.copytree("models/contrastive", "models/export")
    retrieval(tmp_path / "tasks" / "find", sentences(12, longest=8))
    labelled(tmp_path / "tasks" / "sort")
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", ExportDouble)
    monkeypatch.setattr(ExportDouble, "source", tmp_path / "models" / "contrastive")
    return tmp_path


TASKS = [
    LocalTask("find", "retrieval", "tasks/find"),
    LocalTask("sort", "classification", "tasks/sort"),
    LocalTask("group", "clustering", "tasks/sort"),
]


def test_all_models_on_all_tasks(workspace):
    scores, rows = evaluate(EvaluationConfig(tasks=TASKS), stage.PATHS, seed=1)
    assert list(scores.by_model) == ["bm25", "untrained", "pretrained", "finetuned"]
    assert set(scores.by_model["bm25"]) == {"find"}
    assert all(set(scores.by_model[m]) == {"find", "sort", "group"} for m in ("untrained", "pretrained", "finetuned"))
    assert [row.metric for row in rows] == ["ndcg_at_10", "accuracy", "v_measure"]
    again, _ = evaluate(EvaluationConfig(tasks=TASKS), stage.PATHS, seed=1)
    assert again.by_model == scores.by_model
    other, _ = evaluate(EvaluationConfig(tasks=TASKS[1:], baselines=["untrained"]), stage.PATHS, seed=2)
    assert other.by_model["untrained"] != {k: v for k, v in scores.by_model["untrained"].items() if k != "find"}


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("error", 3e-4, "embeddings .query. differ from the trained model's by up to 0.0003"),
        ("max_seq_length", 32, "reads 32 tokens, the trained model 48"),
        ("prompts", {}, "its prompt 'query' is not the trained model's 'cat '"),
    ],
)
def test_an_export_that_differs_fails(workspace, monkeypatch, attribute, value, message):
    monkeypatch.setattr(ExportDouble, attribute, value)
    with pytest.raises(PipelineError, match=message):
        evaluate(EvaluationConfig(tasks=TASKS[:1], baselines=[]), stage.PATHS, seed=1)


def test_stage_writes_its_reports_and_leaves_nothing_stale(workspace):
    section = {"tasks": [t.__dict__ for t in TASKS], "headline": "find"}
    with open("params.yaml", "w") as handle:
        YAML().dump({"seed": 1, "evaluation": section}, handle)
    stale = workspace / "reports" / "evaluate" / "finetuned" / "gone.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    stage.main()
    files = {p: p.read_bytes() for p in (workspace / "reports").rglob("*") if p.is_file()}
    assert stale not in files
    summary = json.loads(files[workspace / "reports" / "summary.json"])
    assert list(summary["retrieval"]) == ["bm25", "finetuned", "pretrained", "untrained"]
    assert summary["retrieval"] == summary["find"]
    metrics = json.loads(files[workspace / "reports" / "mteb.json"])
    assert metrics["finetuned"]["sort"] == summary["sort"]["finetuned"]
    assert files[workspace / "reports" / "results.png"].startswith(b"\x89PNG")
    assert "| find | ndcg_at_10 |" in files[workspace / "reports" / "results.md"].decode()
    stage.main()
    assert files == {p: p.read_bytes() for p in (workspace / "reports").rglob("*") if p.is_file()}


def test_the_request_is_checked_before_any_work(workspace, monkeypatch):
    monkeypatch.setattr(evaluation, "contestants", lambda *_: pytest.fail("work was done"))
    paths = ModelPaths(*[workspace] * 3)
    for config, message in [
        (EvaluationConfig(mteb_tasks=["STSBenchmarc"]), "evaluation.mteb_tasks: .*STSBenchmark"),
        (EvaluationConfig(benchmarks=["MTEB(eng, v3)"]), "evaluation.benchmarks: "),
        (EvaluationConfig(tasks=[LocalTask("x", "sts", "gone")]), "gone is not a directory"),
    ]:
        with pytest.raises(PipelineError, match=message):
            evaluate(config, paths, seed=1)
    monkeypatch.setattr(named_tasks, "hub_answers", lambda: False)
    monkeypatch.setattr(named_tasks.datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(named_tasks.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(PipelineError, match=r"STSBenchmark needs the data set .* does not answer"):
        evaluate(EvaluationConfig(mteb_tasks=["STSBenchmark"]), paths, seed=1)


def test_benchmarks_are_filtered_by_type():
    config = EvaluationConfig(benchmarks=["MTEB(eng, v2)"], mteb_task_type="sts")
    tasks = named_tasks.named_tasks(config)
    assert len(tasks) == 9
    assert {t.metadata.type for t in tasks} == {"STS"}
    assert len(named_tasks.named_tasks(EvaluationConfig(benchmarks=["MTEB(eng, v2)"]))) == 41
