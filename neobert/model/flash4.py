"""flash-attn 4 (``flash_attn.cute``) on a fused qkv, RoPE included, as two operators that a compiled graph keeps whole.

PyTorch's ``activate_flash_attention_impl("FA4")`` does not match the return values of newer releases, so the kernels
are called directly; their signatures change between pre-releases, which is why ``neobert.model.varlen`` tries them
against plain attention before it relies on them. Rotated queries and keys go to memory of their own; values are read
where the projection left them. The backward writes the three gradients into one [T, 3, N, D] buffer, the layout that
the projection's backward multiplies, and turns its first two thirds back in place.
Source: https://github.com/Dao-AILab/flash-attention.

flash-attn compiles its kernels when they are first needed, and needs others above 256 segments (a binary search for
the segment of a block). A run would stand still for seconds in the middle of training when a batch first crosses that
number, so the first call compiles both. Compiled kernels are kept on disk for later processes.
"""

import functools
import os
import stat
import tempfile
from pathlib import Path

import torch

CACHE, CACHE_DIR = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"


def keep_compiled_kernels(folder: Path) -> None:
    """Let flash-attn keep what it compiles in ``folder``, which spares every later process about half a minute.

    What the environment says comes first. flash-attn runs what it finds there, so a folder that is another user's, or
    that others may write to, is not taken. It reads the variables when it is imported.
    """
    if CACHE in os.environ:
        return
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:  # a full or read-only disk: every process compiles
        return
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
        os.environ[CACHE] = "1"
        os.environ.setdefault(CACHE_DIR, str(folder))


keep_compiled_kernels(Path(tempfile.gettempdir(), f"neobert-flash-attn-{os.getuid()}"))


@torch.library.custom_op("neobert::flash4", mutates_args=())
def _flash4(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    deterministic: bool,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    turned = _turned(qkv, cos, sin)
    _compile_forward(qkv.shape[2:], qkv.dtype, qkv.device, max_seqlen, scale, cos is not None)
    out, lse = _attend(qkv, turned if cos is not None else qkv, cu_seqlens, max_seqlen, scale)
    return out, lse, turned


def _attend(
    qkv: torch.Tensor, turned: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of ``qkv`` attended by the queries and keys that begin ``turned``: out [T, N, D], lse [N, T]."""
    from flash_attn.cute.interface import _flash_attn_fwd

    q, k = turned[:, :2].unbind(1)
    result = _flash_attn_fwd(
        q,
        k,
        qkv[:, 2],
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
        softmax_scale=scale,
        return_lse=True,
    )
    return result[0], result[1]


def _few_and_many(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, rotary: bool
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Streams of short segments, fewer and more than flash-attn tells apart: (qkv, turned, cu_seqlens) each."""
    from flash_attn.cute import interface

    streams = []
    for segments in (2, getattr(interface, "BIN_BATCH_SEARCH_THRESH", 0) + 2):
        starts = torch.arange(segments + 1, dtype=torch.int32, device=device) * 16
        qkv = torch.zeros(segments * 16, 3, *shape, dtype=dtype, device=device)
        streams.append((qkv, qkv[:, :2].contiguous() if rotary else qkv, starts))
    return streams


@functools.cache
def _compile_forward(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, max_seqlen: int, scale: float, rotary: bool
) -> None:
    """Run the forward once with few segments and once with many."""
    for qkv, turned, starts in _few_and_many(shape, dtype, device, rotary):
        _attend(qkv, turned, starts, max_seqlen, scale)


@functools.cache
def _compile_backward(
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    max_seqlen: int,
    scale: float,
    deterministic: bool,
    rotary: bool,
) -> None:
    """Run the backward once with few segments and once with many."""
    for qkv, turned, starts in _few_and_many(shape, dtype, device, rotary):
        out, lse = _attend(qkv, turned, starts, max_seqlen, scale)
        _gradients(torch.zeros_like(out), qkv, out, lse, turned, starts, max_seqlen, scale, deterministic)


def _turned(qkv: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None) -> torch.Tensor:
    """Rotated queries and keys [T, 2, N, D], or an empty tensor where there are no angles."""
    if cos is None or sin is None:
        return qkv.new_empty(0)
    from neobert.model.kernels.triton_rope import rotate_queries_keys

    target = qkv.new_empty((qkv.shape[0], 2, *qkv.shape[2:]))
    rotate_queries_keys(qkv, target, cos, sin, 1)
    return target


@_flash4.register_fake
def _(qkv, cu_seqlens, max_seqlen, scale, deterministic, cos, sin):
    tokens, _, heads, channels = qkv.shape
    turned = qkv.new_empty(0) if cos is None else qkv.new_empty((tokens, 2, heads, channels))
    lse = qkv.new_empty((heads, tokens), dtype=torch.float32)
    return qkv.new_empty((tokens, heads, channels)), lse, turned


@torch.library.custom_op("neobert::flash4_backward", mutates_args=())
def _flash4_backward(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    turned: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    deterministic: bool,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
) -> torch.Tensor:
    rotary = cos is not None
    _compile_backward(qkv.shape[2:], qkv.dtype, qkv.device, max_seqlen, scale, deterministic, rotary)
    turned = turned if rotary else qkv
    result = _gradients(grad, qkv, out, lse, turned, cu_seqlens, max_seqlen, scale, deterministic)
    if cos is not None and sin is not None:
        from neobert.model.kernels.triton_rope import rotate_queries_keys

        rotate_queries_keys(result, result, cos, sin, -1)
    return result


def _gradients(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    turned: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    deterministic: bool,
) -> torch.Tensor:
    """Gradients [T, 3, N, D] of the turned queries, the turned keys and the values."""
    from flash_attn.cute.interface import _flash_attn_bwd

    q, k = turned[:, :2].unbind(1)
    result = torch.empty_like(qkv)
    dq, dk, dv = result.unbind(1)
    _flash_attn_bwd(
        q,
        k,
        qkv[:, 2],
        out,
        grad,
        lse,
        softmax_scale=scale,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
        deterministic=deterministic,
        dq=dq,
        dk=dk,
        dv=dv,
    )
    return result


@_flash4_backward.register_fake
def _(grad, qkv, out, lse, turned, cu_seqlens, max_seqlen, scale, deterministic, cos, sin):
    return torch.empty_like(qkv)


def _setup(ctx, inputs, output):
    qkv, cu_seqlens, ctx.max_seqlen, ctx.scale, ctx.deterministic, cos, sin = inputs
    ctx.rotary = cos is not None
    ctx.save_for_backward(qkv, *output, cu_seqlens, *((cos, sin) if ctx.rotary else ()))
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, *_):
    qkv, out, lse, turned, cu_seqlens, *angles = ctx.saved_tensors
    cos, sin = angles if ctx.rotary else (None, None)
    constants = (ctx.max_seqlen, ctx.scale, ctx.deterministic)
    result = _flash4_backward(grad.contiguous(), qkv, out, lse, turned, cu_seqlens, *constants, cos, sin)
    return result, *[None] * 6


_flash4.register_autograd(_backward, setup_context=_setup)


def flash4_attention(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    angles: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """[T, 3, N, D] -> [T, N, D], turned first by ``angles`` (cos, sin: [T, D/2] fp32) where given.

    fp16 or bf16 on a GPU of compute capability 9.0 or more.
    """
    cos, sin = angles if angles is not None else (None, None)
    deterministic = torch.are_deterministic_algorithms_enabled()
    return _flash4(qkv.contiguous(), cu_seqlens, max_seqlen, scale, deterministic, cos, sin)[0]
