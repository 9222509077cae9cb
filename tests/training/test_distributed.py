"""Two gloo ranks on the CPU train like one process: losses, skips, stops, and going on with another number of ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neobert.config.runtime import DistributedConfig
from neobert.errors import PipelineError
from neobert.training.distributed import DDP_BUCKET_CAP_MB, refuse_other_engines
from tests.training import tiny
from tests.training.poison import Poisonable, Poisoned

ROOT = Path(__file__).resolve().parents[2]
ONE_OF_TWO = {"per_device_train_batch_size": 2}
MUONCLIP = {"name": "muonclip", "qk_clip_threshold": 0.003}
DEEPER = {"num_hidden_layers": 3}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Everything that two ranks do, in one launch (starting them is most of the cost)."""
    out = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tests.training.ranks"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, str(out)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def result(scratch):
    return torch.load(scratch / "result.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return tiny.run(tmp_path_factory.mktemp("alone"), {"per_device_train_batch_size": 2})


COUNTS = ("lr", "samples", "skipped", "tokens")


def same_curve(a, b, tolerance):
    assert [row["step"] for row in a] == [row["step"] for row in b]
    for x, y in zip(a, b, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], abs=tolerance)
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-5)
        assert [x[key] for key in COUNTS] == [y[key] for key in COUNTS]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp"])
def test_two_ranks_follow_one_process(ranks, alone, strategy):
    several = result(ranks / strategy)
    same_curve(alone.history, several["history"], 2e-6)
    assert alone.state_dict.keys() == several["state"].keys()
    for key, value in alone.state_dict.items():
        torch.testing.assert_close(value, several["state"][key], atol=1e-5, rtol=1e-4, msg=key)


def test_gradients_are_reduced_in_buckets_of_the_asked_size(ranks):
    assert (ranks / "buckets.txt").read_text() == f"{DDP_BUCKET_CAP_MB} 3"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_nan_on_one_rank_is_skipped_on_all(ranks, tmp_path, strategy):
    several = result(ranks / f"{strategy}-poisoned")
    one = tiny.run(tmp_path, {"per_device_train_batch_size": 2}, objective=Poisonable(), source=Poisoned({5}))
    assert several["history"][-1]["skipped"] == 1
    same_curve(one.history, several["history"], 2e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_signal_to_one_rank_stops_all_and_one_process_goes_on(ranks, alone, strategy):
    stopped = ranks / f"{strategy}-stopped"
    messages = [(stopped / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[1].startswith("tiny: stopped by SIGTERM after step ")
    assert messages[0].split(" after ")[1] == messages[1].split(" after ")[1]
    resumed = tiny.run(stopped, {"per_device_train_batch_size": 2})
    same_curve(alone.history, resumed.history, 1e-5)


@pytest.mark.parametrize("strategy", ["fsdp2", "hsdp"])
def test_a_checkpoint_made_after_an_evaluation_resumes(ranks, strategy):
    """An evaluation leaves the root's weights whole, and their moments must be saved all the same."""
    straight, resumed = (result(ranks / f"{strategy}-evaluated{suffix}") for suffix in ("", "-resumed"))
    assert straight["history"] == resumed["history"]
    assert tiny.same_state(straight["state"], resumed["state"])


def test_a_stop_on_a_step_just_saved_saves_it_once(ranks):
    """Only rank 0 knows when a checkpoint is committed; the others must not start it again alone."""
    stopped = ranks / "just-saved"
    messages = [(stopped / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert all(f"after step {tiny.RUNTIME['save_steps']} and saved" in message for message in messages)
    assert os.listdir(stopped / "checkpoints") == [str(tiny.RUNTIME["save_steps"])]


@pytest.fixture(scope="module")
def muonclip_alone(tmp_path_factory):
    return tiny.run(tmp_path_factory.mktemp("muonclip"), ONE_OF_TWO, optimizer=MUONCLIP, model=DEEPER)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hsdp"])
def test_muonclip_on_two_ranks_follows_one_process(ranks, muonclip_alone, strategy):
    """Matrices sharded by rows are orthogonalised whole, and clipped by the maximum over all ranks' batches."""
    several = result(ranks / f"{strategy}-muonclip")
    same_curve(muonclip_alone.history, several["history"], 1e-5)
    for key, value in muonclip_alone.state_dict.items():
        torch.testing.assert_close(value, several["state"][key], atol=1e-4, rtol=1e-3, msg=key)


def test_one_process_goes_on_with_the_momentum_of_two(ranks, muonclip_alone):
    resumed = tiny.run(ranks / "fsdp2-muonclip-stopped", ONE_OF_TWO, optimizer=MUONCLIP, model=DEEPER)
    same_curve(muonclip_alone.history, resumed.history, 1e-5)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_other_engines_are_refused_by_name(variable, monkeypatch):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(PipelineError, match="strategy: fsdp2"):
        refuse_other_engines()


@pytest.mark.parametrize(("key", "value"), [("shard_size", 2), ("ddp_bucket_cap_mb", 100)])
def test_a_key_of_another_strategy_is_named(key, value):
    assert [found for found, _ in DistributedConfig(strategy="fsdp2", **{key: value}).problems()] == [key]
