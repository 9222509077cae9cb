"""Replace an objective's linear layers by low-precision ones: before it is compiled and wrapped for its ranks.

Weights stay the same fp32 parameters under the same names: optimizer, checkpoints, export and resuming do not know
of the recipe. Only products change; the embedding, attention, norms, the loss and its decoder do not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from neobert.config.low_precision import LinearLayersConfig
from neobert.config.quartet2 import Quartet2Config
from neobert.config.torchao import TorchaoConfig
from neobert.config.transformer_engine import TransformerEngineConfig
from neobert.training.low_precision.layers import chosen_layers


def _nothing(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Most recipes keep no scales between steps."""


@dataclass(frozen=True)
class Conversion:
    """What the training loop must do for a recipe; the defaults are for none.

    Attributes:
        fullgraph: whether the layers can be compiled into one graph.
        autocast: context of every forward, on top of the loop's own.
        follow: called once with the wrapped module and its optimizer.
    """

    fullgraph: bool = True
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    follow: Callable[[nn.Module, torch.optim.Optimizer], None] = _nothing


def convert(
    objective: nn.Module, config: LinearLayersConfig | None, *, device: torch.device, sharded: bool
) -> Conversion:
    """Replace the layers that `config` names, in place; `sharded`: each rank will hold a part of the weights.

    Raises:
        PipelineError: the configuration leaves no layer, or the package refuses it.
    """
    if config is None:
        return Conversion()
    layers = chosen_layers(objective, config)
    if isinstance(config, TransformerEngineConfig):
        from neobert.training.low_precision import te

        return Conversion(fullgraph=False, autocast=te.convert(objective, config, layers))
    if isinstance(config, Quartet2Config):
        from neobert.training.low_precision import quartet

        quartet.convert(objective, config, layers, device)
        return Conversion()
    assert isinstance(config, TorchaoConfig)
    if not config.recipe.startswith("float8_"):
        from neobert.training.low_precision import mx

        mx.convert(objective, config.recipe, layers)
        return Conversion()
    from neobert.training.low_precision import float8

    float8.convert(objective, config, layers, device=device, sharded=sharded)
    scales = sharded and config.precompute_float8_dynamic_scale_for_fsdp
    return Conversion(follow=float8.follow_updates) if scales else Conversion()
