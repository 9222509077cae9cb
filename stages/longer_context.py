"""Go on pretraining at a longer context: longer_context.pretrained_from, data/packed_long -> models/long_context.

The same trainer on other data: weights come in, optimizer and schedule start anew.
"""

from pathlib import Path

from neobert.config.dataset import DatasetConfig
from neobert.config.load import load, load_seed
from neobert.config.longer_context import LongerContextConfig
from neobert.config.quartet2 import Quartet2Config
from neobert.config.runtime import RuntimeConfig
from neobert.config.torchao import TorchaoConfig
from neobert.config.transformer_engine import TransformerEngineConfig
from neobert.model.pretrained import open_pretrained
from neobert.training.launch import on_all_devices
from neobert.training.low_precision.recipes import enabled, require
from neobert.training.phase import Phase
from neobert.training.scratch import describe, open_scratch
from stages.stage import run


def main() -> None:
    """Pretrained weights in, a model of longer context and its loss curve out."""
    config = load(LongerContextConfig, "longer_context")
    phase = Phase(
        stage="longer_context",
        packed=Path("data/packed_long"),
        tokenizer=Path("data/tokenizer"),
        out=Path("models/long_context"),
        reports=Path("reports/longer_context"),
        dataset=load(DatasetConfig, "dataset"),
        collator=config.datacollator,
        trainer=config.trainer,
        optimizer=config.optimizer,
        scheduler=config.scheduler,
        runtime=load(RuntimeConfig, "runtime"),
        seed=load_seed(),
        low_precision=enabled(
            load(TorchaoConfig, "torchao"),
            load(TransformerEngineConfig, "transformer_engine"),
            load(Quartet2Config, "quartet2"),
        ),
    )
    if on_all_devices("stages.longer_context", phase.runtime.distributed):
        return
    require(phase.low_precision)
    with open_scratch(phase.stage, describe(phase.stage)) as scratch:
        key = "longer_context.pretrained_from"
        model, info = open_pretrained(key, config.pretrained_from, phase.tokenizer)
        phase.run(model, info, scratch)


if __name__ == "__main__":
    run(main)
