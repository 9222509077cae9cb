"""Pretrain a new encoder by masked language modelling: data/packed -> models/pretrained, reports/pretrain."""

from pathlib import Path

from neobert.config.datacollator import DataCollatorConfig
from neobert.config.dataset import DatasetConfig
from neobert.config.load import load, load_seed
from neobert.config.model import ModelConfig
from neobert.config.optimizer import OptimizerConfig
from neobert.config.runtime import RuntimeConfig
from neobert.config.scheduler import SchedulerConfig
from neobert.config.trainer import TrainerConfig
from neobert.training.launch import on_all_devices
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
    )
    if on_all_devices("stages.pretrain", phase.runtime.distributed):
        return
    with open_scratch(phase.stage, describe(phase.stage)) as scratch:
        model, info = new_model(load(ModelConfig, "model"), phase.tokenizer, phase.seed)
        phase.run(model, info, scratch)


if __name__ == "__main__":
    run(main)
