"""Stage contrastive_finetune: contrastive.pretrained_from, data/pairs -> models/contrastive, reports/contrastive."""

import os
from pathlib import Path

from neobert.config.contrastive import ContrastiveConfig
from neobert.config.load import load, load_seed
from neobert.config.runtime import RuntimeConfig
from neobert.contrastive.finetune import Places, finetune
from neobert.training.launch import is_main_process, on_all_devices
from neobert.training.reports import write_reports
from neobert.training.scratch import describe, open_scratch
from stages.stage import run


def main() -> None:
    """An encoder in, an embedding model out."""
    config = load(ContrastiveConfig, "contrastive")
    runtime = load(RuntimeConfig, "runtime")
    if on_all_devices("stages.contrastive_finetune", runtime.distributed):
        return
    with open_scratch("contrastive_finetune", describe("contrastive_finetune")) as scratch:
        done = finetune(
            config,
            Places(
                Path("data/pairs"),
                Path(config.pretrained_from),
                Path("data/tokenizer"),
                Path("data/tokens"),
                scratch,
            ),
            runtime=runtime,
            seed=load_seed(),
            world=int(os.environ.get("WORLD_SIZE", "1")),
        )
        if not is_main_process():
            return
        done.start.save(Path("models/contrastive"), done.result.state_dict)
        write_reports(Path("reports/contrastive"), done.result, "contrastive")
        if done.warmup is not None:
            write_reports(Path("reports/contrastive/embedding_warmup"), done.warmup, "embedding warm-up")


if __name__ == "__main__":
    run(main)
