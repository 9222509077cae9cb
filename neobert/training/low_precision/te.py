"""Linear layers of NVIDIA's Transformer Engine: FP8 with delayed or current scaling, MXFP8, NVFP4.

A layer asks Transformer Engine's autocast for the recipe, so every forward runs inside of it; gradients follow what
the forward chose. Source: transformer_engine.pytorch.Linear, transformer_engine.common.recipe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from torch import nn

from neobert.config.transformer_engine import TransformerEngineConfig
from neobert.training.low_precision.layers import adopt, replace


def convert(
    objective: nn.Module, config: TransformerEngineConfig, layers: dict[str, nn.Linear]
) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Replace `layers` of `objective` in place; returns the context that every forward runs in."""
    import transformer_engine.pytorch as te

    class Linear(te.Linear):
        """Without extra state in checkpoints (fp8_delayed's history, which a resumed run begins anew)."""

        get_extra_state = nn.Module.get_extra_state
        set_extra_state = nn.Module.set_extra_state

    for name, linear in layers.items():
        layer = Linear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            params_dtype=linear.weight.dtype,
            device="meta",
        )
        replace(objective, name, adopt(layer, linear))
    recipe = make_recipe(config)
    return lambda: te.autocast(enabled=True, recipe=recipe)


def make_recipe(config: TransformerEngineConfig) -> Any:
    """Transformer Engine's recipe for the section."""
    from transformer_engine.common import recipe

    if config.recipe == "nvfp4":
        return recipe.NVFP4BlockScaling(
            disable_rht=config.disable_rht,
            disable_stochastic_rounding=config.disable_stochastic_rounding,
            disable_2d_quantization=config.disable_2d_quantization,
        )
    kinds = {
        "fp8_delayed": "DelayedScaling",
        "fp8_current": "Float8CurrentScaling",
        "mxfp8": "MXFP8BlockScaling",
    }
    kind = getattr(recipe, kinds[config.recipe])
    return kind() if config.fp8_format is None else kind(fp8_format=recipe.Format[config.fp8_format])
