"""Run under torchrun by test_distributed.py: several small trainings on the same ranks, results left in files."""

import os
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from neobert.config.runtime import DistributedConfig
from neobert.training.checkpoint import Checkpointer
from neobert.training.distributed import Workers
from neobert.training.evaluate import evaluator
from neobert.training.signals import Preempted
from tests.training import tiny
from tests.training.poison import Poisonable, Poisoned

RANK = int(os.environ["RANK"])
MUONCLIP = {"name": "muonclip", "qk_clip_threshold": 0.003}
DEEPER = {"num_hidden_layers": 3}  # matrices that two ranks cannot share evenly


class OneRankSignalled:
    """Only rank 1 gets the signal; all ranks must stop at the same step."""

    def __init__(self, step):
        self.inner, self.step = tiny.source(), step
        self.samples_per_epoch = self.inner.samples_per_epoch

    def micro_batches(self, samples_seen, global_batch_size, *others):
        if RANK == 1 and samples_seen == self.step * global_batch_size:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.inner.micro_batches(samples_seen, global_batch_size, *others)


def train(scratch: Path, strategy: str, trainer: dict | None = None, runtime: dict | None = None, **others):
    runtime = {"num_workers": 0, "distributed": DistributedConfig(strategy=strategy), **(runtime or {})}
    result = tiny.run(scratch, {"per_device_train_batch_size": 2, **(trainer or {})}, runtime, **others)
    if RANK == 0:
        torch.save({"history": result.history, "state": result.state_dict}, scratch / "result.pt")


def stop(scratch: Path, strategy: str, step: int = 6, **others) -> None:
    try:
        train(scratch, strategy, source=OneRankSignalled(step), **others)
    except Preempted as error:
        (scratch / f"rank-{RANK}.txt").write_text(str(error))


def resume_where_evaluated(scratch: Path, strategy: str) -> None:
    """A run that evaluates and saves after the same steps, and one that goes on from such a checkpoint."""
    trainer = {"eval_steps": 4}
    evaluate = evaluator(tiny.source(), {"": np.arange(6)}, 2)
    train(scratch, strategy, trainer, evaluate=evaluate)
    runtime = {"resume_from_checkpoint": str(scratch / "checkpoints" / "8")}
    train(scratch.with_name(f"{scratch.name}-resumed"), strategy, trainer, runtime, evaluate=evaluate)


def stop_where_it_just_saved(scratch: Path) -> None:
    """Rank 0 commits so late that rank 1 comes to the second save of the step first."""
    publish = Checkpointer._publish

    def late(*arguments) -> None:
        time.sleep(1)
        publish(*arguments)

    with mock.patch.object(Checkpointer, "_publish", late):
        stop(scratch, "ddp", tiny.RUNTIME["save_steps"])


def note_buckets(out: Path) -> None:
    """How large DDP's buckets are, without the option and with it."""
    wrapped = [
        Workers(DistributedConfig(ddp_bucket_cap_mb=mebibytes), "no").prepare(tiny.objective())
        for mebibytes in (None, 3)
    ]
    (out / "buckets.txt").write_text(" ".join(str(module.bucket_bytes_cap // 2**20) for module in wrapped))


def main(out: Path) -> None:
    note_buckets(out)
    for strategy in ("ddp", "fsdp2", "hsdp"):
        train(out / strategy, strategy)
    for strategy in ("ddp", "fsdp2", "hsdp"):
        train(out / f"{strategy}-muonclip", strategy, optimizer=MUONCLIP, model=DEEPER)
    for strategy in ("fsdp2", "hsdp"):
        resume_where_evaluated(out / f"{strategy}-evaluated", strategy)
    for strategy in ("ddp", "fsdp2"):
        train(out / f"{strategy}-poisoned", strategy, objective=Poisonable(), source=Poisoned({5}, rank=1))
        stop(out / f"{strategy}-stopped", strategy)
    stop_where_it_just_saved(out / "just-saved")
    stop(out / "fsdp2-muonclip-stopped", "fsdp2", optimizer=MUONCLIP, model=DEEPER)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
