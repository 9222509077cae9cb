"""What all layers of one forward share: where segments lie, rotary angles, and which kernels run.

Made once a forward at the encoder's door, so that a layer neither decides nor recomputes anything.
"""

from typing import NamedTuple

import torch

from neobert.config.model import ModelConfig
from neobert.model.kernels.select import resolve_kernels
from neobert.model.segments import PaddedLayout, padded_layout
from neobert.model.varlen import resolve_backend


class ForwardPlan(NamedTuple):
    """Constants and tensors of one forward. T tokens, S segments, D channels a head."""

    cu_seqlens: torch.Tensor
    """[S+1] int32."""
    max_seqlen: int
    angles: tuple[torch.Tensor, torch.Tensor] | None
    """Cosine and sine, each [T, D/2] fp32; None with learned positions."""
    layout: PaddedLayout | None
    """Only for the sdpa backend outside torch.compile."""
    attention: str
    """``sdpa``, or a varlen kernel: ``fa4``, ``fa2``, ``torch``."""
    kernels: str
    """``torch``, ``triton`` or ``liger``."""
    dtype: torch.dtype
    """What matrix products run in: autocast's type, else the stream's."""


def make_plan(
    config: ModelConfig,
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    angles: tuple[torch.Tensor, torch.Tensor] | None,
) -> ForwardPlan:
    """Choose kernels for the device and type of ``x`` [T, H], and lay out padding where attention needs it.

    Raises:
        PipelineError: a kernel was asked for by name and does not work here.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    attention = resolve_backend(config.attn_backend, x.device, dtype)
    layout = None
    if attention == "sdpa" and not torch.compiler.is_compiling():
        layout = padded_layout(cu_seqlens, dtype)
    kernels = resolve_kernels(config.kernel_backend, kind)
    return ForwardPlan(cu_seqlens, max_seqlen, angles, layout, attention, kernels, dtype)
