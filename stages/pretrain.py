"""Pretrain a new encoder by masked language modelling: data/packed -> models/pretrained, reports/pretrain."""

from pathlib import Path

from neobert.config.datacollator import DataCollatorConfig
from neobert.config.dataset import DatasetConfig
from neobert.config.load import load, load_seed
from neobert.config.model import ModelConfig
from neobert.config.optimizer import OptimizerConfig
from neobert.config.quartet2 import Quartet2Config
from neobert.config.runtime import RuntimeConfig
from neobert.config.scheduler import SchedulerConfig
from neobert.config.torchao import TorchaoConfig
from neobert.config.trainer import TrainerConfig
from neobert.config.transformer_engine import TransformerEngineConfig
from neobert.training.launch import on_all_devices
from neobert.training.low_precision.recipes import enabled, require
from neobert.training.phase import Phase, new_model
from neobert.training.scratch import describe, open_scratch
from stages.stage import run


def main() -> None:
    """Random weights in, a model directory and its loss curve out."""
    phase = Phase(
        stage="pretrain",
        packed=Path("data/packed"),
        tokenizer=Path("data/tokenizer"),
        out=Path("models/pretrained"),
        reports=Path("reports/pretrain"),
        dataset=load(DatasetConfig, "dataset"),
        collator=load(DataCollatorConfig, "datacollator"),
        trainer=load(TrainerConfig, "trainer"),
        optimizer=load(OptimizerConfig, "optimizer"),
        scheduler=load(SchedulerConfig, "scheduler"),
        runtime=load(RuntimeConfig, "runtime"),
        seed=load_seed(),
        low_precision=enabled(
            load(TorchaoConfig, "torchao"),
            load(TransformerEngineConfig, "transformer_engine"),
            load(Quartet2Config, "quartet2"),
        ),
    )
    if on_all_devices("stages.pretrain", phase.runtime.distributed):
        return
    require(phase.low_precision)
    with open_scratch(phase.stage, describe(phase.stage)) as scratch:
        model, info = new_model(load(ModelConfig, "model"), phase.tokenizer, phase.seed)
        phase.run(model, info, scratch)


if __name__ == "__main__":
    run(main)
