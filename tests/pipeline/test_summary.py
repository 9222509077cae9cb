"""The closing table of `make repro`: what it says of data left out, and where nothing was measured."""

from pathlib import Path

import pytest

from neobert.io import write_json
from stages import summary

MEASURED = {"eval_loss": 2.5, "eval_accuracy": 0.25, "eval_recall_at_10": 0.5}


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("evaluation: {}\n")


@pytest.mark.parametrize(
    ("stage", "report", "shown"),
    [
        ("pretrain", "pretrain", "validation loss 2.500, accuracy 25.0% of masked tokens"),
        ("longer_context", "longer_context", "validation loss 2.500, accuracy 25.0% of masked tokens"),
        ("contrastive_finetune", "contrastive", "validation loss 2.500, recall@10 50.0%"),
    ],
)
def test_a_training_without_validation_data_says_so(stage, report, shown):
    write_json(f"reports/{report}/metrics.json", {"loss": 3.0, **MEASURED})
    assert summary.KEY_FIGURES[stage]() == shown
    write_json(f"reports/{report}/metrics.json", {"loss": 3.0})
    assert summary.KEY_FIGURES[stage]() == "validation loss not measured"


@pytest.mark.parametrize(
    ("scores", "shown"),
    [({}, "no local retrieval task; tasks scored: 0"), ({"STS": {}}, "no local retrieval task; tasks scored: 1")],
)
def test_an_evaluation_without_a_local_retrieval_task_says_so(scores, shown):
    write_json("reports/summary.json", scores)
    assert summary.evaluate() == shown


@pytest.mark.parametrize(("metric", "shown"), [("null", "ndcg_at_10"), ("recall_at_100", "recall_at_100")])
def test_the_headline_is_shown_by_its_own_metric(metric, shown):
    task = f"{{name: find, type: retrieval, path: tasks, metric: {metric}}}"
    Path("params.yaml").write_text(f"evaluation: {{tasks: [{{name: a, type: sts, path: tasks}}, {task}]}}\n")
    write_json("reports/summary.json", {"retrieval": {"bm25": 0.5, "other": 1.0, "finetuned": 0.75}})
    assert summary.evaluate() == f"{shown} of find: bm25 0.500, finetuned 0.750"


@pytest.mark.parametrize(
    ("skipped", "shown"), [({}, "1,000 documents for train"), ({"not JSON": 3, "empty": 1}, ", 4 bad rows skipped")]
)
def test_the_corpus_counts_rows_that_were_skipped(skipped, shown):
    splits = {"train": {"documents": 1000}}
    write_json("data/corpus/manifest.json", {"splits": splits, "skipped_rows": skipped})
    assert summary.corpus().endswith(shown)
