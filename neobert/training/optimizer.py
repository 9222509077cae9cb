"""Optimizers and their parameter groups.

Norm weights, biases and embeddings are not decayed: decay pulls a norm's gain towards 0 rather than 1, and rare
tokens' embeddings, which get few gradients, would only shrink. A tied decoder is an embedding.
"""

from __future__ import annotations

import torch
from torch import nn

from neobert.config.optimizer import OptimizerConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two AdamW groups, decayed and not; each trainable parameter once, tied ones too, in module order."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    kept = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Fused AdamW: one kernel over all parameters, which can also skip a step on the device (`found_inf`)."""
    groups = parameter_groups(module, config.weight_decay)
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=True)
