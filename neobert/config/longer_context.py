"""`longer_context.*`: the second phase, the same trainer on longer rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from neobert.config.datacollator import DataCollatorConfig
from neobert.config.optimizer import OptimizerConfig
from neobert.config.packing import PackingConfig
from neobert.config.scheduler import SchedulerConfig
from neobert.config.trainer import TrainerConfig


@dataclass(frozen=True)
class LongerContextConfig:
    """Sections of the longer-context phase; only the weights are taken over, the rest starts anew."""

    pretrained_from: Annotated[
        str,
        "The model directory that this phase starts from: pretraining's, another of this pipeline, or a Hugging Face "
        "directory (EuroBERT, NeoBERT, an export).",
    ] = "models/pretrained"
    packing: Annotated[PackingConfig, "Rows of the longer context (see packing)."] = field(
        default_factory=PackingConfig
    )
    datacollator: Annotated[DataCollatorConfig, "Masking (see datacollator)."] = field(
        default_factory=DataCollatorConfig
    )
    trainer: Annotated[TrainerConfig, "Steps and batches (see trainer)."] = field(default_factory=TrainerConfig)
    optimizer: Annotated[OptimizerConfig, "Update rule (see optimizer)."] = field(default_factory=OptimizerConfig)
    scheduler: Annotated[SchedulerConfig, "Learning rate's course (see scheduler)."] = field(
        default_factory=SchedulerConfig
    )
