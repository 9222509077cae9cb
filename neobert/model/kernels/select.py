"""Which kernels compute norm, SwiGLU and RoPE: decided once from the config and the device.

``torch`` is plain PyTorch, which torch.compile fuses well; ``liger`` is Liger's kernels; ``triton`` is this project's
own, which ``auto`` takes on a GPU. On a CPU plain PyTorch is fastest (F.rms_norm is fused there; gradients written
out in Python measured 0.7x its speed).
"""

import importlib.util
import logging

import torch

from neobert.errors import PipelineError

log = logging.getLogger(__name__)


@torch.compiler.assume_constant_result
def resolve_kernels(kernel_backend: str, device_type: str) -> str:
    """``torch``, ``triton`` or ``liger`` for ``model.kernel_backend`` on a device of ``device_type``.

    Raises:
        PipelineError: ``liger`` was asked for and is not installed, or there is no GPU to run it.
    """
    if kernel_backend == "torch":
        return "torch"
    has_triton = device_type == "cuda" and importlib.util.find_spec("triton") is not None
    if kernel_backend == "auto":
        return "triton" if has_triton else "torch"
    if not has_triton:
        raise PipelineError(
            f"model.kernel_backend: 'liger' needs a CUDA device with triton, and the model is on {device_type!r}; "
            "set it to auto or torch"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise PipelineError("model.kernel_backend: 'liger' is not installed; pip install liger-kernel, or set auto")
    return "liger"
