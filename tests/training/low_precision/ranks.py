"""Run under torchrun by test_gathering.py: float8 weights gathered over two ranks, with results left in files."""

import os
import sys
from pathlib import Path

import torch
from torchao.float8 import fsdp_utils

from neobert.config.runtime import DistributedConfig
from neobert.config.torchao import TorchaoConfig
from tests.training import tiny
from tests.training.low_precision.test_torchao import MODEL

RANK = int(os.environ["RANK"])
GATHERING = TorchaoConfig(recipe="float8_tensorwise", enable_fsdp_float8_all_gather=True)
PRECOMPUTED = TorchaoConfig(
    recipe="float8_tensorwise", enable_fsdp_float8_all_gather=True, precompute_float8_dynamic_scale_for_fsdp=True
)


MUONCLIP = {"name": "muonclip", "qk_clip_threshold": 0.01}


def train(scratch: Path, config: TorchaoConfig, max_steps: int = 4, optimizer: dict | None = None):
    runtime = {"num_workers": 0, "distributed": DistributedConfig(strategy="fsdp2")}
    trainer = {"per_device_train_batch_size": 2, "max_steps": max_steps}
    result = tiny.run(scratch, trainer, runtime, {"name": "constant"}, MODEL, optimizer, low_precision=config)
    if RANK == 0:
        torch.save({"history": result.history, "state": result.state_dict}, scratch / "result.pt")


def main(out: Path) -> None:
    gathered = []
    original = fsdp_utils.WeightWithDynamicFloat8CastTensor.fsdp_pre_all_gather

    def watched(self, mesh):
        inputs, metadata = original(self, mesh)
        gathered.append((inputs[0].dtype, self._precomputed_scale is not None))
        return inputs, metadata

    fsdp_utils.WeightWithDynamicFloat8CastTensor.fsdp_pre_all_gather = watched
    train(out / "plain", TorchaoConfig(recipe="float8_tensorwise"))
    assert not gathered
    train(out / "gathering", GATHERING)
    assert set(gathered) == {(torch.float8_e4m3fn, False)}, set(gathered)
    gathered.clear()
    train(out / "precomputed", PRECOMPUTED)
    assert set(gathered) == {(torch.float8_e4m3fn, True)}, set(gathered)
    train(out / "resumed", PRECOMPUTED, max_steps=2)
    train(out / "resumed", PRECOMPUTED)
    train(out / "muonclip-plain", TorchaoConfig(recipe="float8_tensorwise"), optimizer=MUONCLIP)
    train(out / "muonclip", PRECOMPUTED, optimizer=MUONCLIP)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
