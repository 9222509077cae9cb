"""Held-out figures during contrastive training: loss and recall among the validation pairs; and the best model kept.

All validation pairs form one batch, so a query ranks its positive among as many documents as there are pairs. Cost:
one forward over their texts.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from neobert.contrastive.pairs import Pairs
from neobert.contrastive.source import chunks_of, collate_pairs
from neobert.io import atomic_path, read_json, write_json
from neobert.training.model_checkpoint import full_state
from neobert.training.prefetch import move
from neobert.training.resume import BEST_FIGURES, BEST_STATE
from neobert.training.source import HOST_KEYS
from neobert.training.trainer import Evaluate, TrainResult

log = logging.getLogger(__name__)
CHUNK_TEXTS = 256


def make_evaluate(pairs: Pairs, limit: int, *, pad_token_id: int, max_negatives: int) -> Evaluate:
    """``evaluate(objective, step)`` over at most ``limit`` pairs, spread evenly over the split."""
    rows = np.unique(np.linspace(0, pairs.rows - 1, min(limit, pairs.rows)).round().astype(np.int64))
    texts = pairs.take(rows, max_negatives)
    chunks = chunks_of(2 * len(rows) + sum(map(len, texts.negatives)), CHUNK_TEXTS)
    batch = collate_pairs(texts, labels=pairs.classes[rows], pad_token_id=pad_token_id, chunks=chunks)
    inputs = {key: value for key, value in batch.items() if key not in HOST_KEYS}

    def evaluate(objective: nn.Module, step: int) -> dict[str, float]:
        device = next(objective.parameters()).device
        loss, sums = objective(move(inputs, device))
        return {name: float(total) / len(rows) for name, total in {"loss": loss, **sums}.items()}

    return torch.no_grad()(evaluate)


class KeepBest:
    """Evaluates, and keeps the objective's state where ``metric`` was best so far; the first of equal ones.

    The untrained start gives way to an equal state that was trained: figures that cannot tell them apart are no reason
    to throw a training away.

    Evaluation is a function of the weights, so a resumed run meets the same figures again: a state that was kept after
    the checkpoint it resumed from is simply kept once more. A run that goes on from another's checkpoint brings the
    best until then along, and one that leaves its course drops it (``neobert.training.resume``).

    Args:
        evaluate: gives the figures.
        metric: which one decides; ``loss`` is best low, the others high.
        directory: where the best state and its step are kept.
        judged: what else decides the figures (JSON); a state that another run kept is compared only where it is equal.
    """

    def __init__(self, evaluate: Evaluate, metric: str, directory: Path, judged: Mapping[str, Any]) -> None:
        self.evaluate, self.metric, self.directory = evaluate, metric, directory
        self.judged = {"metric": metric, **judged}

    def _kept(self) -> dict[str, Any] | None:
        """What is known of the state kept so far; None where there is none that this run can compare."""
        path = self.directory / BEST_FIGURES
        if not path.is_file():
            return None
        kept = read_json(path)
        its = kept.get("judged", self.judged)
        if its == self.judged:
            return kept
        changed = [name for name in self.judged if its.get(name) != self.judged[name]]
        log.warning("%s: was chosen under other %s, so it does not count", self.directory, ", ".join(changed))
        return None

    def _better(self, score: float, step: int) -> bool:
        kept = self._kept()
        if kept is None:
            return score > float("-inf")
        return score > kept["score"] or (score == kept["score"] and step > kept["step"] == 0)

    def __call__(self, objective: nn.Module, step: int) -> dict[str, float]:
        figures = self.evaluate(objective, step)
        score = figures[self.metric] * (-1 if self.metric == "loss" else 1)
        if self._agreed(self._better(score, step)):
            # Under DDP the objective is wrapped; FSDP2 shards it in place, and full_state gathers it on all ranks.
            state = full_state(getattr(objective, "module", objective))
            if not dist.is_initialized() or dist.get_rank() == 0:
                with atomic_path(self.directory / BEST_STATE) as path:
                    save_file({key: value.contiguous() for key, value in state.items()}, path)
                kept = {"score": score, "step": step, "figures": figures, "judged": self.judged}
                write_json(self.directory / BEST_FIGURES, kept)
        return figures

    @staticmethod
    def _agreed(better: bool) -> bool:
        """Rank 0's word, since it alone keeps the file."""
        if not dist.is_initialized():
            return better
        box = [better]
        dist.broadcast_object_list(box, src=0)
        return bool(box[0])

    def result(self, last: TrainResult) -> TrainResult:
        """``last`` with the best state and its figures in place of the last ones.

        It is ``last`` itself where no evaluation had a figure to compare (all of them NaN, or none made since a
        checkpoint of another run).
        """
        best = self._kept()
        if best is None:
            log.warning("no evaluation gave a finite %s, so the last model is kept", self.metric)
            return last
        log.info("the best model by %s is that of step %d", self.metric, best["step"])
        figures = {f"eval_{name}": value for name, value in best["figures"].items()}
        return dataclasses.replace(
            last,
            metrics={**last.metrics, **figures, "best_step": best["step"]},
            state_dict=load_file(self.directory / BEST_STATE),
        )
