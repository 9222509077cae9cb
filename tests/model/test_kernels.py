"""Triton kernels against plain PyTorch: in Triton's interpreter everywhere, on a GPU where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neobert.errors import PipelineError
from neobert.model.kernels.select import resolve_kernels

from .builders import batch, masked_lm

NUMERICS = Path(__file__).with_name("kernel_numerics.py")
HALF_STEP = 2**-7  # one rounding of the largest number to bf16's 8 bits


def numerics(device: str) -> dict[str, float]:
    # The interpreter replaces compiled kernels when they are decorated, hence a process of its own.
    env = {**os.environ, "PYTHONPATH": str(NUMERICS.parents[2]), "TRITON_INTERPRET": str(int(device == "cpu"))}
    done = subprocess.run([sys.executable, NUMERICS, device], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_kernels_equal_plain_pytorch_in_forward_and_gradients(device):
    pytest.importorskip("triton")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    for name, difference in numerics(device).items():
        limit = 2e-6 if "fp32" in name else 4 * HALF_STEP if "in place" in name else HALF_STEP
        assert difference <= limit, (name, difference)


def test_a_requested_and_missing_kernel_is_an_error():
    with pytest.raises(PipelineError, match=r"model\.kernel_backend: 'liger'"):
        masked_lm(kernel_backend="liger")(*batch([4, 5]))


def test_plain_pytorch_serves_a_cpu():
    assert resolve_kernels("auto", "cpu") == "torch"
    assert resolve_kernels("torch", "cuda") == "torch"
