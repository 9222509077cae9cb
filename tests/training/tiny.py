"""A tiny model, tiny packed rows and a tiny run, shared by the training tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from neobert.config.datacollator import DataCollatorConfig
from neobert.config.model import ModelConfig
from neobert.config.optimizer import OptimizerConfig
from neobert.config.runtime import RuntimeConfig
from neobert.config.scheduler import SchedulerConfig
from neobert.config.trainer import TrainerConfig
from neobert.model.heads import MaskedLM
from neobert.training.checkpoint import SafeReader, load_tensors
from neobert.training.masking import MaskTable
from neobert.training.mlm import MlmSource
from neobert.training.objective import PretrainModel
from neobert.training.trainer import TrainResult, train

VOCAB, LENGTH = 64, 32
PAD, CLS, SEP, MASK = 0, 1, 2, 3
TABLE = MaskTable.of(MASK, [PAD, CLS, SEP, MASK], VOCAB)


@dataclass
class MemoryRows:
    """Packed rows in memory: [CLS] ... [SEP] segments of varied length, with a padded tail now and then."""

    rows: int = 24
    max_length: int = LENGTH
    seed: int = 0

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        self.ids = np.full((self.rows, self.max_length), PAD, np.int32)
        self.lengths = []
        for row in range(self.rows):
            lengths, used = [], 0
            while self.max_length - used >= 4 and generator.random() > 0.15 * len(lengths):
                length = int(generator.integers(4, min(16, self.max_length - used) + 1))
                start = int(generator.integers(4, VOCAB))
                segment = 4 + (start + np.arange(length)) % (VOCAB - 4)  # learnable: each token is the next id
                segment[0], segment[-1] = CLS, SEP
                self.ids[row, used : used + length] = segment
                lengths.append(length)
                used += length
            self.lengths.append(np.array(lengths, np.int32))

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.ids[index], self.lengths[index]

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        return self.ids[indices], [self.lengths[i] for i in indices]


def objective(**changes) -> PretrainModel:
    """A one-layer model with its loss, the same weights each time."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = ModelConfig(**{**small, "max_position_embeddings": LENGTH, **changes})
    return PretrainModel(MaskedLM(config, VOCAB, PAD), masked_logits_only=True, accuracy=False)


def source(seed: int = 7, **changes) -> MlmSource:
    return MlmSource(MemoryRows(), DataCollatorConfig(**changes), TABLE, seed)


TRAINER = {"global_batch_size": 8, "per_device_train_batch_size": 4, "max_steps": 12}
RUNTIME = {"logging_steps": 2, "save_steps": 4, "num_workers": 1}


def run(
    scratch: Path,
    trainer: dict | None = None,
    runtime: dict | None = None,
    scheduler: dict | None = None,
    model: dict | None = None,
    optimizer: dict | None = None,
    **others,
) -> TrainResult:
    """A whole training in `scratch`; dictionaries change single keys of the defaults above."""
    return train(
        others.pop("objective", None) or objective(**(model or {})),
        others.pop("source", None) or source(),
        trainer=TrainerConfig(**{**TRAINER, **(trainer or {})}),
        optimizer=OptimizerConfig(**{"lr": 1e-2, **(optimizer or {})}),
        scheduler=SchedulerConfig(**(scheduler or {"name": "cosine", "warmup_steps": 2})),
        runtime=RuntimeConfig(**{**RUNTIME, **(runtime or {})}),
        seed=7,
        scratch=scratch,
        stage="tiny",
        **others,
    )


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bitwise equality."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Everything a checkpoint holds."""
    stored = SafeReader(checkpoint).entries()
    state = {key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in stored.items()}
    load_tensors(checkpoint, state)
    return state
