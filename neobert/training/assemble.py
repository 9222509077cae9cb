"""From an objective to what a step runs: converted, compiled, on its device, wrapped for its ranks, with its optimizer.

In that order: compiling must see the converted layers, and a wrapper's hooks cannot lie inside of one full graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from neobert.config.low_precision import LinearLayersConfig
from neobert.config.optimizer import OptimizerConfig
from neobert.config.trainer import LoopConfig
from neobert.model.encoder import Encoder
from neobert.training.distributed import Workers
from neobert.training.low_precision.convert import convert
from neobert.training.optimizer import build_optimizer


def assemble(
    objective: nn.Module,
    trainer: LoopConfig,
    optimizer: OptimizerConfig,
    workers: Workers,
    low_precision: LinearLayersConfig | None = None,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The objective converted, compiled, on its device and wrapped for its ranks, and its optimizer."""
    for encoder in (m for m in objective.modules() if isinstance(m, Encoder)):
        encoder.gradient_checkpointing = trainer.gradient_checkpointing
    conversion = convert(objective, low_precision, device=workers.device, sharded=workers.sharded)
    compile_objective(objective, trainer, workers.sharded, conversion.fullgraph)
    module = workers.prepare(objective).train()
    updater = build_optimizer(objective, optimizer)
    workers.recipe_autocast = conversion.autocast
    conversion.follow(module, updater)
    return module, updater


def compile_objective(objective: nn.Module, config: LoopConfig, sharded: bool, fullgraph: bool = True) -> None:
    """Compile in place, before any wrapper: one full graph, or each layer's forward where FSDP2 gathers around it."""
    if not config.torch_compile:
        return
    torch._logging.set_logs(recompiles=True)  # each one with its reason
    options: dict[str, Any] = {
        "fullgraph": fullgraph,
        "backend": config.torch_compile_backend,
        "dynamic": config.torch_compile_dynamic,
    }
    if not sharded:
        objective.compile(**options)
        return
    for encoder in (m for m in objective.modules() if isinstance(m, Encoder)):
        for layer in encoder.layers:
            layer.forward = torch.compile(layer.forward, **options)
