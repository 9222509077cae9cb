"""flash-attn 4 (``flash_attn.cute``) on a fused qkv, as two custom operators that a compiled graph keeps whole.

PyTorch's ``activate_flash_attention_impl("FA4")`` does not match the return values of newer releases, so the kernels
are called directly; their signatures change between pre-releases, which is why ``neobert.model.varlen`` tries them
against plain attention before it relies on them. The backward writes the three gradients into one [T, 3, N, D]
buffer, the layout that the qkv projection's backward multiplies. Source: https://github.com/Dao-AILab/flash-attention.
"""

import torch


@torch.library.custom_op("neobert::flash4", mutates_args=())
def _flash4(
    qkv: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, scale: float, deterministic: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    from flash_attn.cute.interface import _flash_attn_fwd

    q, k, v = qkv.unbind(1)
    result = _flash_attn_fwd(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_k=max_seqlen,
        softmax_scale=scale,
        return_lse=True,
    )
    return result[0], result[1]


@_flash4.register_fake
def _(qkv, cu_seqlens, max_seqlen, scale, deterministic):
    tokens, _, heads, channels = qkv.shape
    return qkv.new_empty((tokens, heads, channels)), qkv.new_empty((heads, tokens), dtype=torch.float32)


@torch.library.custom_op("neobert::flash4_backward", mutates_args=())
def _flash4_backward(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    deterministic: bool,
) -> torch.Tensor:
    from flash_attn.cute.interface import _flash_attn_bwd

    q, k, v = qkv.unbind(1)
    result = torch.empty_like(qkv)
    dq, dk, dv = result.unbind(1)
    _flash_attn_bwd(
        q,
        k,
        v,
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
def _(grad, qkv, out, lse, cu_seqlens, max_seqlen, scale, deterministic):
    return torch.empty_like(qkv)


def _setup(ctx, inputs, output):
    qkv, cu_seqlens, *ctx.constants = inputs
    ctx.save_for_backward(qkv, *output, cu_seqlens)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _):
    qkv, out, lse, cu_seqlens = ctx.saved_tensors
    gradient = _flash4_backward(grad.contiguous(), qkv, out, lse, cu_seqlens, *ctx.constants)
    return gradient, None, None, None, None


_flash4.register_autograd(_backward, setup_context=_setup)


def flash4_attention(qkv: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, scale: float) -> torch.Tensor:
    """[T, 3, N, D] -> [T, N, D]; fp16 or bf16 on a GPU of compute capability 9.0 or more."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    return _flash4(qkv.contiguous(), cu_seqlens, max_seqlen, scale, deterministic)[0]
