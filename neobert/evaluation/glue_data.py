"""The nine GLUE tasks: columns, labels, metrics, and their examples from local files or the hub.

Labels are GLUE's own numbers (0, 1, 2; for stsb a score of 0 to 5). The hidden test sets (label -1) are not used.
Source: A. Wang et al., GLUE (arXiv:1804.07461); ``nyu-mll/glue`` on the hub. Metrics as there: Matthews correlation
for cola, accuracy and F1 for mrpc and qqp, Pearson and Spearman for stsb, accuracy for the rest; a task's score is the
mean of its metrics, for mnli over its two validation sets.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from neobert.config.glue import METRICS
from neobert.errors import PipelineError
from neobert.jsonl import read_jsonl
from neobert.network import probe_hub

HUB = "nyu-mll/glue"
VALIDATION = {"mnli": ("validation_matched", "validation_mismatched")}


@dataclass(frozen=True)
class GlueTask:
    """What a task reads and predicts; one label is a regression."""

    name: str
    columns: tuple[str, ...]
    num_labels: int

    @property
    def validation(self) -> tuple[str, ...]:
        """Names of its validation sets."""
        return VALIDATION.get(self.name, ("validation",))


TASKS = {
    "cola": GlueTask("cola", ("sentence",), 2),
    "sst2": GlueTask("sst2", ("sentence",), 2),
    "mrpc": GlueTask("mrpc", ("sentence1", "sentence2"), 2),
    "stsb": GlueTask("stsb", ("sentence1", "sentence2"), 1),
    "qqp": GlueTask("qqp", ("question1", "question2"), 2),
    "mnli": GlueTask("mnli", ("premise", "hypothesis"), 3),
    "qnli": GlueTask("qnli", ("question", "sentence"), 2),
    "rte": GlueTask("rte", ("sentence1", "sentence2"), 2),
    "wnli": GlueTask("wnli", ("sentence1", "sentence2"), 2),
}


@dataclass(frozen=True)
class Labelled:
    """Examples as token ids, and their labels (int64, or float32 for a regression)."""

    ids: list[np.ndarray]
    labels: np.ndarray


def load_task(
    task: GlueTask, path: str | None, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, Labelled]:
    """The examples of ``train`` and of each validation set, tokenised with the special tokens of a pair.

    Raises:
        PipelineError: a file is missing, a line does not fit, a label is out of range, or the hub cannot be reached.
    """
    rust = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    rust.enable_truncation(max_length, strategy="longest_first")
    rust.no_padding()
    found = {}
    for split in ("train", *task.validation):
        rows = _local(task, Path(path), split) if path is not None else _hub(task, split)
        inputs = [
            tuple(row[c] for c in task.columns) if len(task.columns) > 1 else row[task.columns[0]] for row in rows
        ]
        encoded = rust.encode_batch_fast(inputs)
        kind = np.float32 if task.num_labels == 1 else np.int64
        labels = np.array([row["label"] for row in rows], dtype=kind)
        found[split] = Labelled([np.array(e.ids, dtype=np.int64) for e in encoded], labels)
    return found


def _local(task: GlueTask, path: Path, split: str) -> list[dict[str, Any]]:
    kinds = (int, float) if task.num_labels == 1 else (int,)
    file = path / task.name / f"{split}.jsonl"
    rows = read_jsonl(file, {**dict.fromkeys(task.columns, str), "label": kinds})
    _check(task, rows, str(file))
    return rows


def _hub(task: GlueTask, split: str) -> list[dict[str, Any]]:
    from datasets import load_dataset

    probe_hub(f"glue.dataset_path: null takes {HUB} from the hub and")
    rows = list(load_dataset(HUB, task.name, split=split))
    _check(task, rows, f"{HUB}, {task.name}, {split}")
    return rows


def _check(task: GlueTask, rows: list[dict[str, Any]], where: str) -> None:
    for number, row in enumerate(rows, start=1):
        if not (0 <= row["label"] <= 5 if task.num_labels == 1 else 0 <= row["label"] < task.num_labels):
            allowed = "0 to 5" if task.num_labels == 1 else f"0 to {task.num_labels - 1}"
            raise PipelineError(f"{where}: row {number}: label {row['label']} is not {allowed}, as {task.name} has it")


def metrics(task: GlueTask, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics of ``predictions`` [N] (classes, or scores for a regression).

    A correlation that is undefined, as all predictions are equal, counts as 0.
    """
    computed = {
        "accuracy": lambda: accuracy_score(labels, predictions),
        "f1": lambda: f1_score(labels, predictions, zero_division=0.0),
        "matthews_correlation": lambda: matthews_corrcoef(labels, predictions),
        "pearson": lambda: pearsonr(predictions, labels)[0] if np.ptp(predictions) > 0 else 0.0,
        "spearmanr": lambda: spearmanr(predictions, labels)[0] if np.ptp(predictions) > 0 else 0.0,
    }
    return {name: float(computed[name]()) for name in METRICS[task.name]}
