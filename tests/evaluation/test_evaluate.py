"""The whole evaluation on tiny models: all columns, checked hop to the export, reports, nothing stale."""

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from neobert.config.evaluation import EvaluationConfig, LocalTask
from neobert.errors import PipelineError
from neobert.evaluation import evaluate as evaluation
from neobert.evaluation import named_tasks
from neobert.evaluation.evaluate import ModelPaths, evaluate
from neobert.evaluation.report import write_reports
from stages import evaluate as stage
from tests.evaluation.conftest import make_model, make_tokenizer, sentences
from tests.evaluation.test_export_hop import write_export
from tests.evaluation.test_local_tasks import labelled, retrieval


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_dir):
    """models/ and tasks/ as the stages before leave them, and a third party's model."""
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(model_dir, root / "models" / "contrastive")
    make_model(root / "models" / "long_context", None, seed=3)
    write_export(model_dir, root / "models" / "export")
    retrieval(root / "tasks" / "find", sentences(12, longest=8))
    labelled(root / "tasks" / "sort")
    third_party(root / "bert-tiny")
    return root


def third_party(path):
    """A sentence-transformers model that shares nothing with ours: BERT, first token, dot product."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    config = BertConfig(
        vocab_size=128, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    make_tokenizer(path.parent / "bert")
    BertModel(config).save_pretrained(path.parent / "bert")
    modules = [Transformer(str(path.parent / "bert"), max_seq_length=32), Pooling(24, "cls")]
    SentenceTransformer(modules=modules, similarity_fn_name="dot", device="cpu").save(str(path))


@pytest.fixture
def workspace(tmp_path, finished, monkeypatch):
    """A copy that a test may change."""
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


PATHS = ModelPaths(Path("models/long_context"), Path("models/contrastive"), Path("models/export"))
TASKS = [
    LocalTask("find", "retrieval", "tasks/find"),
    LocalTask("sort", "classification", "tasks/sort"),
    LocalTask("group", "clustering", "tasks/sort"),
]


def test_all_models_on_all_tasks(workspace):
    scores, rows = evaluate(EvaluationConfig(tasks=TASKS, models=["bert-tiny"]), PATHS, seed=1)
    assert list(scores.by_model) == ["bm25", "untrained", "pretrained", "finetuned", "bert-tiny"]
    assert set(scores.by_model["bm25"]) == {"find"}
    assert all(set(found) == {"find", "sort", "group"} for label, found in scores.by_model.items() if label != "bm25")
    assert [row.metric for row in rows] == ["ndcg_at_10", "accuracy", "v_measure"]
    other, _ = evaluate(EvaluationConfig(tasks=TASKS[1:2], baselines=["untrained"]), PATHS, seed=2)
    assert other.by_model["finetuned"]["sort"] == scores.by_model["finetuned"]["sort"]
    assert other.by_model["untrained"]["sort"] != scores.by_model["untrained"]["sort"]


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def swap_two_rows(path):
    weights = load_file(path)
    table = weights["model.embed_tokens.weight"]
    table[[10, 11]] = table[[11, 10]]
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", swap_two_rows, r"embeddings .query. differ from the trained model's by up to"),
        ("sentence_bert_config.json", lambda p: edit(p, max_seq_length=32), "reads 32 tokens, the trained model 48"),
        (
            "config_sentence_transformers.json",
            lambda p: edit(p, prompts={}),
            "its prompt 'query' is not the trained model's 'cat '",
        ),
    ],
)
def test_an_export_that_differs_fails(workspace, file, damage, message):
    damage(workspace / "models" / "export" / file)
    with pytest.raises(PipelineError, match=message):
        evaluate(EvaluationConfig(tasks=TASKS[:1], baselines=[]), PATHS, seed=1)


def test_stage_writes_its_reports_and_leaves_nothing_stale(workspace):
    section = {"tasks": [t.__dict__ for t in TASKS], "headline": "find"}
    with open("params.yaml", "w") as handle:
        YAML().dump(
            {"seed": 1, "evaluation": section, "contrastive": {"pretrained_from": str(PATHS.pretrained)}}, handle
        )
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


def test_the_stage_without_any_task_leaves_all_its_outputs(workspace):
    with open("params.yaml", "w") as handle:
        YAML().dump({"seed": 1, "evaluation": {}, "contrastive": {"pretrained_from": str(PATHS.pretrained)}}, handle)
    stage.main()
    names = {path.name for path in (workspace / "reports").iterdir()}
    assert names == {"evaluate", "mteb.json", "results.md", "results.png", "summary.json"}, "as dvc.yaml lists them"


def test_without_any_task_the_export_is_still_checked(workspace):
    scores, rows = evaluate(EvaluationConfig(), PATHS, seed=1)
    write_reports(workspace / "reports", scores.by_model, rows, None)
    assert json.loads((workspace / "reports" / "summary.json").read_text()) == {}
    assert "No task is declared" in (workspace / "reports" / "results.md").read_text()
    swap_two_rows(workspace / "models" / "export" / "model.safetensors")
    with pytest.raises(PipelineError, match="differ from the trained model"):
        evaluate(EvaluationConfig(), PATHS, seed=1)


def test_the_request_is_checked_before_any_work(workspace, monkeypatch):
    monkeypatch.setattr(evaluation, "contestants", lambda *_: pytest.fail("work was done"))
    paths = ModelPaths(*[workspace] * 3)
    typo = EvaluationConfig(tasks=TASKS[:1], prompts={"find-query": "a", "querry": "b"})
    for config, message in [
        (typo, r"evaluation.prompts.querry: 'b' would go before no text of this run"),
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


ENGLISH = EvaluationConfig(benchmarks=["MTEB(eng, v2)"])
SORT = EvaluationConfig(tasks=TASKS[1:2])
FIND = EvaluationConfig(tasks=TASKS[:1])


@pytest.mark.parametrize(
    ("config", "used", "useless"),
    [
        (ENGLISH, ["Summarization", "STS", "query", "Reranking-document"], "BitextMining"),
        (ENGLISH, ["ArguAna-query", "Retrieval", "SummEvalSummarization.v2"], "Summarization"),
        (ENGLISH, ["STS"], "STS-query"),
        (SORT, ["Classification"], "query"),
        (SORT, ["sort"], "Clustering"),
        (SORT, ["sort"], "sort-query"),
        (SORT, ["sort"], "Classification"),
        (FIND, ["find-query", "document"], "Retrieval-query"),
        (FIND, ["query", "document"], "query-query"),
        # An aggregate's parts are what is encoded.
        (EvaluationConfig(mteb_tasks=["CQADupstackRetrieval"]), ["CQADupstackTexRetrieval"], "CQADupstackRetrieval"),
    ],
)
def test_a_prompt_is_refused_exactly_where_no_text_would_get_it(workspace, config, used, useless):
    tasks = [evaluation.local_task(spec) for spec in config.tasks] + named_tasks.named_tasks(config)
    for key in used:
        evaluation.check_prompts({key: "a"}, tasks)
    with pytest.raises(
        PipelineError, match=rf"evaluation\.prompts\.{useless}: 'b' would go before no text of this run"
    ):
        evaluation.check_prompts({**dict.fromkeys(used, "a"), useless: "b"}, tasks)


def test_benchmarks_are_filtered_by_type():
    config = EvaluationConfig(benchmarks=["MTEB(eng, v2)"], mteb_task_type="sts")
    tasks = named_tasks.named_tasks(config)
    assert len(tasks) == 9
    assert {t.metadata.type for t in tasks} == {"STS"}
    assert len(named_tasks.named_tasks(EvaluationConfig(benchmarks=["MTEB(eng, v2)"]))) == 41
