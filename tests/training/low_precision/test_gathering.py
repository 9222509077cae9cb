"""Weights gathered in float8 over two gloo ranks: the losses of plain gathering, plain checkpoints, exact resume."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import tiny

pytest.importorskip("torchao")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "-m", "tests.training.low_precision.ranks", str(out)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def result(scratch):
    return torch.load(scratch / "result.pt", weights_only=True)


@pytest.mark.parametrize(
    ("plain", "run"), [("plain", "gathering"), ("plain", "precomputed"), ("muonclip-plain", "muonclip")]
)
def test_gathering_in_float8_changes_no_result(ranks, plain, run):
    plain, gathered = result(ranks / plain), result(ranks / run)
    assert gathered["history"] == plain["history"]
    assert tiny.same_state(plain["state"], gathered["state"])


def test_checkpoints_hold_plain_fp32_weights(ranks):
    plain, gathered = (tiny.tensors(ranks / run / "checkpoints" / "4") for run in ("plain", "precomputed"))
    assert tiny.same_state(plain, gathered)
    assert {v.dtype for k, v in gathered.items() if k.startswith("model.")} == {torch.float32}


def test_a_resumed_run_computes_its_scales_from_the_loaded_weights(ranks):
    assert tiny.same_state(result(ranks / "precomputed")["state"], result(ranks / "resumed")["state"])
