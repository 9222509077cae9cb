"""Run under torchrun by test_ranks.py: the same small fine-tuning on two ranks, its result left in a file."""

import os
import sys
from pathlib import Path

import torch

from neobert.config.contrastive import ContrastiveConfig, ContrastiveTrainerConfig, EmbeddingWarmupConfig
from neobert.config.optimizer import OptimizerConfig
from neobert.config.runtime import DistributedConfig, RuntimeConfig
from neobert.contrastive.finetune import Finetuned, Places, finetune

TRAINER = ContrastiveTrainerConfig(global_batch_size=16, max_steps=4, num_train_epochs=None, eval_steps=2)
CONFIG = ContrastiveConfig(
    token_weights="idf",
    symmetric=True,
    mini_batch_size=10,
    trainer=TRAINER,
    optimizer=OptimizerConfig(lr=1e-3),
    embedding_warmup=EmbeddingWarmupConfig(trainer=TRAINER),
)


def run(root: Path, scratch: Path, strategy: str, world: int) -> Finetuned:
    runtime = RuntimeConfig(save_steps=None, num_workers=0, distributed=DistributedConfig(strategy=strategy))
    places = Places(root / "pairs", root / "model", root / "tokenizer", root / "tokens", scratch)
    return finetune(CONFIG, places, runtime=runtime, seed=0, world=world)


def main(root: Path, out: Path) -> None:
    for strategy in ("ddp", "fsdp2"):
        done = run(root, out / strategy, strategy, int(os.environ["WORLD_SIZE"]))
        if os.environ["RANK"] == "0":
            torch.save({"state": done.result.state_dict, "metrics": done.result.metrics}, out / strategy / "result.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
