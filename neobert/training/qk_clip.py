"""QK-clip: no head's attention logits outgrow a threshold (Kimi K2, arXiv:2507.20534, section 2.1).

S is a head's largest logit, scale x q.k within segments, over a step's whole batch: all micro-batches, all ranks.
After the update, where S > tau, the head's rows of W_q and W_k are multiplied by sqrt(tau / S) each, which multiplies
its logits by tau / S; no other head is touched. Muon needs it more than AdamW, as its updates
have full rank and make q and k grow along all directions at once.

The attention layers measure S themselves, in the forward pass (``neobert.model.max_logits``), into a buffer each that
is no part of a model's state; measuring twice, as gradient checkpointing does, changes no maximum.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from neobert.errors import PipelineError
from neobert.model.attention import Attention


class QkClip:
    """Has the attention layers of ``module`` measure their logits, and scales their weights.

    Args:
        module: on its device and wrapped for its ranks.
        threshold: tau.

    Raises:
        PipelineError: it has no attention layers whose logits follow their weights' size.
    """

    def __init__(self, module: nn.Module, threshold: float) -> None:
        self.threshold = threshold
        self.attentions = [m for m in module.modules() if isinstance(m, Attention)]
        if not self.attentions:
            raise PipelineError(
                "optimizer.name: 'muonclip' bounds attention logits by scaling queries and keys, which nGPT normalises "
                "and a bag of embeddings has not; take muon"
            )
        for attention in self.attentions:
            attention.max_logits = torch.full((attention.num_heads,), -torch.inf, device=attention.qkv.weight.device)

    @torch.no_grad()
    def apply(self, sound: Tensor) -> None:
        """Scale the weights by what was measured since the last call; ``sound`` (0-d bool) is false to leave them."""
        measured = [attention.max_logits for attention in self.attentions if attention.max_logits is not None]
        largest = torch.stack(measured)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        over = (largest > self.threshold) & torch.isfinite(largest) & sound
        factors = torch.where(over, (self.threshold / largest).sqrt(), 1.0)
        for attention, factor in zip(self.attentions, factors, strict=True):
            rows = factor.repeat_interleave(attention.head_dim)
            _scale_rows(attention.qkv.weight, torch.cat((rows, rows, torch.ones_like(rows))))
        torch._foreach_copy_(measured, [torch.full_like(measured[0], -torch.inf)] * len(measured))


def _scale_rows(weight: Tensor, factors: Tensor) -> None:
    """Multiply each row in place; of a sharded weight, those that this rank holds."""
    column = factors[:, None].to(weight.dtype)
    if isinstance(weight, DTensor):
        mesh = weight.device_mesh
        column = DTensor.from_local(column, mesh, [Replicate()] * mesh.ndim, run_check=False)
    weight.mul_(column)
