"""What a benchmark ran on, for its results: device, versions, and the attention kernel, on which much depends."""

import platform
from typing import Any

import torch

from neobert.model.varlen import probe


def device_name() -> str:
    """The accelerator's name, or the CPU's."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"


def machine() -> dict[str, Any]:
    """device, torch, python, varlen_kernel (`model.attn_backend: auto` takes it in bf16; None without a GPU)."""
    return {
        "device": device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "varlen_kernel": probe(torch.cuda.current_device())[0] if torch.cuda.is_available() else None,
    }
