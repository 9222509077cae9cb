"""Two ranks fine-tune like one: warm-up, gathered negatives, GradCache, evaluation and the best model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .ranks import run

ROOT = Path(__file__).resolve().parents[2]


def test_two_ranks_follow_one_process(world, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tests.contrastive.ranks"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(world), str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    alone = run(world, tmp_path / "alone", "ddp", 1).result
    for strategy in ("ddp", "fsdp2"):
        several = torch.load(tmp_path / strategy / "result.pt", weights_only=True)
        assert several["metrics"]["best_step"] == alone.metrics["best_step"]
        assert several["metrics"]["eval_loss"] == pytest.approx(alone.metrics["eval_loss"], rel=1e-3)
        assert alone.state_dict.keys() == several["state"].keys()
        for key, value in alone.state_dict.items():
            torch.testing.assert_close(value, several["state"][key], atol=1e-4, rtol=1e-3, msg=key)
