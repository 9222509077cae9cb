"""Initial weights, as NeoBERT's (arXiv:2502.19587): uniform in plus or minus a range, norms at one, biases at zero.

Cost: one pass over the weights. The same seed gives the same weights on one kind of device; draws happen in the
order of ``modules()``, so build on the CPU for weights that do not depend on the machine.
"""

import torch
from torch import nn

from neobert.config.model import ModelConfig


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, generator: torch.Generator | None = None) -> None:
    """Draw every embedding and linear weight of ``model`` in place; rows at ``padding_idx`` become zero."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            r = config.embedding_init_range
            module.weight.uniform_(-r, r, generator=generator)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.Linear):
            r = config.decoder_init_range
            module.weight.uniform_(-r, r, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
