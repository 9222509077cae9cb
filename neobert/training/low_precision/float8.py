"""Float8 linear layers by TorchAO, with float8 gathering of sharded weights.

`y = (x / s_x in e4m3) @ (w / s_w in e4m3).T x s_x s_w`, and likewise both products of the backward (gradients in e5m2
where scales are tensorwise); scales are the largest absolute value of a tensor or row, measured in the same step.
Cost: three products at up to twice bf16's rate, and reading each operand once more to scale it, which is why narrow
layers lose. TorchAO is called directly: accelerate's `convert_model_to_fp8_ao` is the same call behind a filter of its
own, and ours is given anyway.
Source: torchao.float8; Micikevicius et al. 2022, arXiv:2209.05433.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from neobert.config.torchao import TorchaoConfig


def convert(
    objective: nn.Module,
    config: TorchaoConfig,
    layers: dict[str, nn.Linear],
    *,
    device: torch.device,
    sharded: bool,
) -> None:
    """Replace `layers` of `objective` in place.

    A CPU, which the recipe is refused on before any work and where only tests and a benchmark come here, computes the
    same rounded values in fp32. With one rank nothing is gathered, and a gathered weight has the same scale, so
    results do not depend on the number of ranks.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    recipe = Float8LinearConfig.from_recipe_name(config.recipe.removeprefix("float8_"))
    gathers = config.enable_fsdp_float8_all_gather and sharded
    recipe = dataclasses.replace(recipe, enable_fsdp_float8_all_gather=gathers, emulate=device.type == "cpu")
    convert_to_float8_training(objective, config=recipe, module_filter_fn=lambda _, name: name in layers)
    if gathers:
        for name in layers:
            objective.get_submodule(name).register_state_dict_post_hook(_plain_weight)


def _plain_weight(layer: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Give out the fp32 tensor inside the gathering wrapper, which is saved and loaded into as any other."""
    name = f"{prefix}weight"
    weight = state[name]
    if isinstance(weight, DTensor):
        state[name] = DTensor.from_local(
            weight._local_tensor._tensor,  # type: ignore[attr-defined]
            weight.device_mesh,
            weight.placements,
            run_check=False,
            shape=weight.shape,
            stride=weight.stride(),
        )


def follow_updates(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Compute all weights' scales in one all-reduce, once after each update.

    Just before the next forward rather than at the end of the update, so that scales also follow what changes weights
    there (nGPT's normalisation) and a resumed run computes them from the weights it loaded.
    """
    from torchao.float8 import precompute_float8_dynamic_scale_for_fsdp

    stale = True

    def updated(*_: Any) -> None:
        nonlocal stale
        stale = True

    def before_forward(*_: Any) -> None:
        nonlocal stale
        if stale:
            precompute_float8_dynamic_scale_for_fsdp(module)
            stale = False

    optimizer.register_step_post_hook(updated)
    module.register_forward_pre_hook(before_forward, prepend=True)
