"""Which linear layers are converted, and how one is replaced without a change to names and weights."""

from __future__ import annotations

import logging

from torch import nn

from neobert.config.low_precision import LinearLayersConfig
from neobert.config.quartet2 import Quartet2Config
from neobert.config.torchao import TorchaoConfig
from neobert.errors import PipelineError
from neobert.training.low_precision.recipes import key_of, recipe_of

log = logging.getLogger(__name__)


def chosen_layers(objective: nn.Module, config: LinearLayersConfig) -> dict[str, nn.Linear]:
    """The linear layers that `config` converts, by name, in module order.

    Kept back: names that contain an entry of `filter_fqns`, the first and the last linear layer of all (the decoder is
    one) with `skip_first_last_linear`, sizes that the recipe's blocks do not divide, and small ones with
    `auto_filter_small_kn`.

    Raises:
        PipelineError: an entry of `filter_fqns` names no layer, or no layer is left.
    """
    section, _ = key_of(config)
    linear = {name: module for name, module in objective.named_modules() if isinstance(module, nn.Linear)}
    for entry in config.filter_fqns:
        if not any(entry in name for name in linear):
            raise PipelineError(
                f"{section}.filter_fqns: {entry!r} is in no linear layer's name; they are {', '.join(linear)}"
            )
    names = list(linear)
    ends = {names[0], names[-1]} if config.skip_first_last_linear else set()
    wanted = {
        name: module
        for name, module in linear.items()
        if name not in ends and not any(entry in name for entry in config.filter_fqns)
    }
    kept = {name: module for name, module in wanted.items() if _fits(name, module, config)}
    if not kept:
        raise PipelineError(f"{section}: no linear layer is left to convert; {_remedy(config)}")
    small = [name for name in wanted if name not in kept]
    log.info(
        "%s: %d of %d linear layers converted%s",
        *(".".join(key_of(config)), len(kept), len(linear)),
        f"; too small or of other sizes: {', '.join(small)}" if small else "",
    )
    return kept


def _fits(name: str, linear: nn.Linear, config: LinearLayersConfig) -> bool:
    multiple = _multiple(config)
    if linear.in_features % multiple or linear.out_features % multiple:
        return False
    if isinstance(config, TorchaoConfig) and config.auto_filter_small_kn:
        from torchao.float8 import _auto_filter_for_recipe

        return _auto_filter_for_recipe(key_of(config)[1].removeprefix("float8_"), filter_fqns=[])(linear, name)
    return True


def _remedy(config: LinearLayersConfig) -> str:
    if isinstance(config, TorchaoConfig) and config.auto_filter_small_kn:
        return "at these widths TorchAO expects none to gain; set torchao.auto_filter_small_kn to false to force them"
    return f"their sizes must be multiples of {_multiple(config)}, and filter_fqns must leave some"


def _multiple(config: LinearLayersConfig) -> int:
    return config.required_dim_multiple if isinstance(config, Quartet2Config) else recipe_of(config).multiple


def replace(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` where `root` has the module `name`."""
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, layer)


def adopt(layer: nn.Module, linear: nn.Linear) -> nn.Module:
    """`layer` with the very parameters of `linear`, so that no optimizer or checkpoint sees a difference."""
    layer.weight = linear.weight
    if linear.bias is not None:
        layer.bias = linear.bias
    return layer
