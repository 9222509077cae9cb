"""Varlen flash kernels: which one works here, found once by running it, and one call for all.

In order of speed on a Hopper GPU (one H200, 64 rows of 1024 tokens, 28 x 768: 286 against 268 thousand tokens/s):
``fa4`` (flash-attn 4, ``flash_attn.cute``), ``fa2`` (flash-attn 2), ``torch`` (PyTorch's own varlen kernel). A kernel
counts as working when a tiny bf16 batch agrees with plain attention, so an incompatible release falls through to the
next with one logged line. ``torch.use_deterministic_algorithms(True)`` asks for deterministic backward kernels.
"""

import functools
import importlib.util
import itertools
import logging

import torch

from neobert.errors import PipelineError

log = logging.getLogger(__name__)

PROBE_TOLERANCE = 2e-2


def _torch_varlen(qkv, cu_seqlens, max_seqlen, scale):
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.unbind(1)
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scale)


def _flash_2(qkv, cu_seqlens, max_seqlen, scale):
    from flash_attn import flash_attn_varlen_qkvpacked_func

    deterministic = torch.are_deterministic_algorithms_enabled()
    return flash_attn_varlen_qkvpacked_func(
        qkv, cu_seqlens, max_seqlen, softmax_scale=scale, deterministic=deterministic
    )


def _flash_4(qkv, cu_seqlens, max_seqlen, scale):
    from neobert.model.flash4 import flash4_attention

    return flash4_attention(qkv, cu_seqlens, max_seqlen, scale, None)


KERNELS = {"fa4": _flash_4, "fa2": _flash_2, "torch": _torch_varlen}


def varlen_attention(
    qkv: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, scale: float, kernel: str
) -> torch.Tensor:
    """[T, 3, N, D] -> [T, N, D] by ``kernel`` (``fa4``, ``fa2`` or ``torch``); fp16 or bf16 on CUDA."""
    return KERNELS[kernel](qkv, cu_seqlens, max_seqlen, scale)


@torch.compiler.assume_constant_result
def resolve_backend(attn_backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """``sdpa``, or the varlen kernel to use on ``device`` for activations of ``dtype``.

    Raises:
        PipelineError: ``flash_attn_varlen`` was asked for and nothing of the kind works on this device.
    """
    capable = device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if attn_backend == "sdpa" or (attn_backend == "auto" and not capable):
        return "sdpa"
    if not capable:
        raise PipelineError(
            f"model.attn_backend: 'flash_attn_varlen' needs bf16 on a CUDA device, and the batch is {dtype} on "
            f"{device.type!r}; set it to auto or sdpa, or trainer.mixed_precision to bf16"
        )
    kernel, reasons = probe(device.index if device.index is not None else torch.cuda.current_device())
    if kernel is None and attn_backend == "flash_attn_varlen":
        raise PipelineError(f"model.attn_backend: 'flash_attn_varlen': no kernel works here ({reasons})")
    return kernel or "sdpa"


@functools.lru_cache
def probe(device_index: int) -> tuple[str | None, str]:
    """The fastest varlen kernel that works on a GPU, and why faster ones do not; runs once a device."""
    reasons: list[str] = []
    for name in KERNELS:
        reason = _why_not(name, torch.device("cuda", device_index))
        if reason is None:
            log.info("attention: varlen kernel %s%s", name, f" ({'; '.join(reasons)})" if reasons else "")
            return name, "; ".join(reasons)
        reasons.append(f"{name}: {reason}")
    log.warning("attention: no varlen kernel works here (%s)", "; ".join(reasons))
    return None, "; ".join(reasons)


def _why_not(name: str, device: torch.device) -> str | None:
    if name != "torch" and importlib.util.find_spec("flash_attn") is None:
        return "not installed"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0"
    try:
        # The first forward may be one without gradients, under autocast, or a checkpointed one, whose hooks would count
        # the probe's tensors among its own; the probe needs none of it.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cuda", enabled=False),
            torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
        ):
            worst = _error(name, device)
    # Kernels of third parties fail in their own ways (missing symbols, JIT errors); each is a reason, and logged.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    return None if worst < PROBE_TOLERANCE else f"differs from plain attention by {worst:.1e}"


def _error(name: str, device: torch.device) -> float:
    """Relative error of a kernel's output and gradient over two segments of 17 and 31 tokens."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(48, 3, 2, 64, generator=generator).to(device, torch.bfloat16).requires_grad_()
    cu_seqlens = torch.tensor([0, 17, 48], dtype=torch.int32, device=device)
    out = varlen_attention(qkv, cu_seqlens, 31, 64**-0.5, name)
    (gradient,) = torch.autograd.grad(out.float().square().sum(), qkv)
    expected, expected_gradient = _plain(qkv.detach().float(), cu_seqlens.tolist())
    return max(_relative(out, expected), _relative(gradient, expected_gradient))


def _plain(qkv: torch.Tensor, starts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    qkv.requires_grad_()
    parts = []
    for a, b in itertools.pairwise(starts):
        q, k, v = qkv[a:b].permute(1, 2, 0, 3)
        parts.append(((q @ k.transpose(-1, -2) * 64**-0.5).softmax(-1) @ v).transpose(0, 1))
    out = torch.cat(parts)
    return out.detach(), torch.autograd.grad(out.square().sum(), qkv)[0]


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.float() - b).norm() / b.norm()).item()
