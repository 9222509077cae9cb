"""Paired bootstrap: is one model better than another on a task, or is it the choice of examples?

Algorithm: both models answer the same examples, so a resample draws examples with replacement once and scores both
models on it; the interval is the central 95% of the differences over ``RESAMPLES`` draws (percentile method). The
example is a query (retrieval, reranking), a pair (sts, pair_classification), a test text (classification) or one of
MTEB's draws of documents (clustering: it shows how much the draw matters, not the choice of documents).
Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
Cost: one evaluation of the metric a resample and model; a mean over examples is one matrix product.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytrec_eval
from mteb.abstasks import AbsTask
from mteb.abstasks.sts import AbsTaskSTS
from sklearn.metrics import f1_score

from neobert.config.evaluation import LocalTask
from neobert.errors import PipelineError

RESAMPLES = 2000
AGREEMENT = 2e-4
"""Scores are reported with five digits; the examples must add up to them."""


@dataclass(frozen=True)
class Examples:
    """One model's answers on a task: ``statistic(indices) -> metric`` over ``count`` examples."""

    count: int
    statistic: Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Difference:
    """``b - a`` with its 95% interval."""

    a: float
    b: float
    low: float
    high: float
    examples: int

    @property
    def clear(self) -> bool:
        """Does the interval leave out zero?"""
        return self.low > 0 or self.high < 0


def bootstrap(a: Examples, b: Examples, seed: int, resamples: int = RESAMPLES) -> Difference:
    """Paired bootstrap of the difference ``b - a``.

    Raises:
        PipelineError: the models answered different numbers of examples.
    """
    if a.count != b.count:
        raise PipelineError(f"the models answered {a.count} and {b.count} examples; a paired comparison needs the same")
    draw = np.random.default_rng(seed)
    differences = []
    for _ in range(resamples):
        indices = draw.integers(0, a.count, a.count)
        differences.append(b.statistic(indices) - a.statistic(indices))
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    everything = np.arange(a.count)
    return Difference(a.statistic(everything), b.statistic(everything), float(low), float(high), a.count)


def examples(spec: LocalTask, task: AbsTask, predictions: Path, scores: dict[str, Any], reported: float) -> Examples:
    """The examples behind a reported score.

    Args:
        spec: the task as declared.
        task: the MTEB task that was run.
        predictions: the directory MTEB wrote its predictions to.
        scores: MTEB's scores of the test split.
        reported: the main metric, which the examples must add up to.

    Raises:
        PipelineError: they do not (a change in MTEB's metrics or files).
    """
    path = predictions / task.prediction_file_name
    answers = json.loads(path.read_text(encoding="utf-8"))["default"]["test"]
    found = _READERS[spec.type](task, answers, spec.main_metric, scores)
    value = found.statistic(np.arange(found.count))
    if not abs(value - reported) <= AGREEMENT:
        raise PipelineError(f"{spec.name}: its {found.count} examples give {value:.5f}, MTEB reports {reported:.5f}")
    return found


def _mean(values: np.ndarray) -> Examples:
    return Examples(len(values), lambda indices: float(values[indices].mean()))


def _queries(task: Any, answers: dict[str, dict[str, float]], metric: str, _: dict) -> Examples:
    relevant = task.dataset["default"]["test"]["relevant_docs"]
    name, k = metric.rsplit("_at_", 1)
    if name == "mrr":
        values = {query: _reciprocal_rank(found, relevant[query], int(k)) for query, found in answers.items()}
    else:
        measure = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P"}[name]
        found = pytrec_eval.RelevanceEvaluator(relevant, {f"{measure}.{k}"}).evaluate(answers)
        values = {query: row[f"{measure}_{k}"] for query, row in found.items()}
    return _mean(np.array([values[query] for query in sorted(values)]))


def _reciprocal_rank(scores: dict[str, float], relevant: dict[str, int], k: int) -> float:
    ranked = sorted(scores, key=lambda document: (scores[document], document), reverse=True)[:k]  # ties as MTEB's
    return next((1 / rank for rank, document in enumerate(ranked, start=1) if relevant.get(document, 0) > 0), 0.0)


def _pairs(task: Any, answers: dict[str, Any], metric: str, _: dict) -> Examples:
    columns = {name: np.array(values) for name, values in answers.items() if values is not None}
    test = task.dataset["test"]
    sts = isinstance(task, AbsTaskSTS)
    gold = np.array(test["score" if sts else "label"])

    def statistic(indices: np.ndarray) -> float:
        drawn = {name: values[indices].tolist() for name, values in columns.items()}
        compute = task._calculate_scores if sts else task._compute_metrics  # MTEB's own definition of each metric
        return float(compute(drawn, gold[indices].tolist())[metric])

    return Examples(len(gold), statistic)


def _texts(task: Any, answers: list[list[Any]], metric: str, _: dict) -> Examples:
    gold = np.array(task.dataset["test"]["label"])
    experiments = np.array(answers)  # [draws of the training examples, texts]
    if metric == "accuracy":
        return _mean((experiments == gold).mean(axis=0))
    average = {"f1": "macro", "f1_weighted": "weighted"}[metric]

    def statistic(indices: np.ndarray) -> float:
        return float(np.mean([f1_score(gold[indices], row[indices], average=average) for row in experiments]))

    return Examples(len(gold), statistic)


def _draws(task: Any, answers: Any, metric: str, scores: dict) -> Examples:
    levels = scores["v_measures" if metric == "v_measure" else f"{metric}_scores"]
    return _mean(np.array(next(iter(levels.values()))))


_READERS: dict[str, Callable[[Any, Any, str, dict], Examples]] = {
    "retrieval": _queries,
    "reranking": _queries,
    "sts": _pairs,
    "pair_classification": _pairs,
    "classification": _texts,
    "clustering": _draws,
}
