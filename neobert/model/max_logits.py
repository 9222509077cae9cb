"""The largest attention logit of each head within segments, for QK-clip (``neobert.training.qk_clip``).

No flash kernel returns it (their log-sum-exp only bounds it), so the products of queries and keys are made once more,
a block at a time, and only their maxima kept. Cost: 2 x N x D x sum(length^2) operations forward, half of the
attention's own forward or a sixth of its forward and backward. With the sdpa backend a bounded block of logits is
held; with the others, which may not wait for the host to read where segments begin, a Triton kernel holds none.
"""

import torch

from neobert.model.plan import ForwardPlan
from neobert.model.rope import apply_rope
from neobert.model.segments_op import segmented_max_logits


@torch.no_grad()
def max_logits(qkv_T3ND: torch.Tensor, plan: ForwardPlan, scale: float) -> torch.Tensor:
    """[T, 3, N, D], before rotary positions -> [N] fp32: max over pairs of a segment of ``scale * q.k``."""
    qk = qkv_T3ND[:, :2]
    if plan.angles is not None:
        qk = apply_rope(qk, *plan.angles)
    if plan.attention == "sdpa":
        return segmented_max_logits(qk, plan.cu_seqlens, scale)
    from neobert.model.kernels.triton_max_logits import segmented_max_logits as on_gpu

    return on_gpu(qk, plan.cu_seqlens, scale)
