"""The loop on a GPU: no host sync, one compilation, exact resume with trainer.deterministic, repeated async saves."""

import pytest
import torch
from torch._dynamo.utils import counters

from neobert.config.optimizer import OptimizerConfig
from neobert.config.runtime import DistributedConfig
from neobert.config.trainer import TrainerConfig
from neobert.training.assemble import assemble
from neobert.training.distributed import Workers
from neobert.training.prefetch import DeviceBatches
from neobert.training.signals import Preempted
from neobert.training.step import TrainStep, seed_step
from neobert.training.timing import Timing
from tests.training import tiny
from tests.training.test_resume import Interrupting

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
# Heads of 64 channels, as kernels want them.
MODEL = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 192, "num_hidden_layers": 2, "dropout": 0.1}
BF16 = {"mixed_precision": "bf16", "torch_compile": True}


@pytest.mark.parametrize("name", ["adamw", "muonclip"])
def test_steps_never_make_the_host_wait(name):
    config = TrainerConfig(**{**tiny.TRAINER, **BF16, "skip_spikes": True})
    objective, source = tiny.objective(**MODEL), tiny.source()
    workers = Workers(DistributedConfig(), config.mixed_precision)
    module, updater = assemble(objective, config, OptimizerConfig(name=name), workers)
    timing = Timing(workers.device, enabled=True)
    step = TrainStep(module, objective, updater, workers, config, timing, lambda: None)
    batches = DeviceBatches(lambda i: source.micro_batches(i * 8, 8, 4, 0, 1), range(20), workers.device, 1, 2, timing)
    for index, batch in enumerate(batches):
        torch.cuda.set_sync_debug_mode("error" if index >= 5 else "default")
        try:
            seed_step(0, index, 0)
            step.run(batch, 1e-3, stop=lambda: False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert step.read_window()["loss"] > 0


def test_one_compilation_and_the_cpus_losses(tmp_path, monkeypatch):
    counters.clear()
    torch._dynamo.reset()
    compiled = tiny.run(tmp_path / "gpu", BF16, model={**MODEL, "dropout": 0.0})
    assert counters["stats"]["unique_graphs"] == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    eager = tiny.run(tmp_path / "cpu", model={**MODEL, "dropout": 0.0})
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    for a, b in zip(compiled.history, eager.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-2)


def test_muonclip_compiles_once_and_clips_as_on_the_cpu(tmp_path, monkeypatch):
    """The kernel that measures logits beside a flash kernel, inside the one graph."""
    clip = {"optimizer": {"name": "muonclip", "qk_clip_threshold": 0.01}, "model": {**MODEL, "dropout": 0.0}}
    counters.clear()
    torch._dynamo.reset()
    compiled = tiny.run(tmp_path / "gpu", {**BF16, "gradient_checkpointing": True}, **clip)
    assert counters["stats"]["unique_graphs"] == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    eager = tiny.run(tmp_path / "cpu", **clip)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    for layer in range(2):
        key = f"model.encoder.layers.{layer}.attention.qkv.weight"
        a, b = compiled.state_dict[key], eager.state_dict[key]
        assert (a - b).norm() < 0.1 * b.norm()


def test_a_deterministic_run_resumes_bitwise(tmp_path):
    exact = {**BF16, "deterministic": True}
    undisturbed = tiny.run(tmp_path / "a", exact, model=MODEL)
    for step in (3, 6):
        with pytest.raises(Preempted):
            tiny.run(tmp_path / "b", exact, {"num_workers": 0}, model=MODEL, source=Interrupting(step))
    resumed = tiny.run(tmp_path / "b", exact, model=MODEL)
    torch.use_deterministic_algorithms(False)
    assert tiny.same_state(undisturbed.state_dict, resumed.state_dict)
    assert undisturbed.history == resumed.history


def test_every_save_of_many_is_whole(tmp_path):
    result = tiny.run(tmp_path, BF16, {"save_steps": 1, "save_total_limit": 20}, model=MODEL)
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert steps == list(range(1, 13))
    last = tiny.tensors(tmp_path / "checkpoints" / "12")
    for key, value in result.state_dict.items():
        stored = last.get(f"model.{key}")
        assert stored is None or torch.equal(stored, value)
    # A save that had caught weights in the middle of an update would not lead to the same next one.
    again = tiny.run(tmp_path, BF16, {"resume_from_checkpoint": 6, "save_steps": None}, model=MODEL)
    assert again.history[-1]["loss"] == pytest.approx(result.history[-1]["loss"], rel=1e-2)
