"""Optimizers and their parameter groups.

Adam adds its decay to the gradient, so that it is scaled like one: a weight of large gradients decays less. AdamW
(Loshchilov and Hutter 2019, arXiv:1711.05101) decays all weights alike, as does Muon (`neobert.training.muon`), which
here takes the weight matrices of the encoder's layers. The embedding table and the decoder, whose rows are tokens
rather than directions, the heads, and all vectors stay with AdamW.

Norm weights, biases and embeddings are not decayed: decay pulls a norm's gain towards 0 rather than 1, and rare
tokens' embeddings, which get few gradients, would only shrink. A tied decoder is an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from neobert.config.optimizer import OptimizerConfig
from neobert.errors import PipelineError
from neobert.model.encoder import Encoder
from neobert.training.muon import Muon
from neobert.training.qk_clip import QkClip


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups, decayed and not; each trainable parameter once, tied ones too, in module order."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    kept = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def hidden_matrices(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable matrices of the encoder's layers: fused projections [q | k | v], and the others."""
    layers = [layer for m in module.modules() if isinstance(m, Encoder) for layer in m.layers]
    named = [(name, p) for layer in layers for name, p in layer.named_parameters() if p.requires_grad and p.ndim == 2]
    fused = [p for name, p in named if name.endswith("qkv.weight")]
    return fused, [p for name, p in named if not name.endswith("qkv.weight")]


def state_elements(module: nn.Module, config: OptimizerConfig) -> int:
    """Numbers that the optimizer keeps: two for each trained weight, one for each that Muon updates."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    muon = config.name in ("muon", "muonclip")
    return 2 * trained - (sum(p.numel() for part in hidden_matrices(module) for p in part) if muon else 0)


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer that `optimizer.name` names, over a module that is on its device and wrapped for its ranks.

    Each can skip a step on the device (`found_inf`). Adam and AdamW are one fused kernel over all parameters.
    `lr_ratio` in a group is what its rate is multiplied by, where that is not 1.

    Raises:
        PipelineError: muon for a module without an encoder, muonclip for one without plain attention.
    """
    groups = parameter_groups(module, config.weight_decay)
    beta1, beta2 = config.betas
    options: dict[str, Any] = {"lr": config.lr, "betas": (beta1, beta2), "eps": config.eps, "fused": True}
    if config.name == "adamw":
        return torch.optim.AdamW(groups, **options)
    if config.name == "adam":
        return torch.optim.Adam(groups, **options)
    return _build_muon(module, config, groups, options)


def _build_muon(module: nn.Module, config: OptimizerConfig, groups: list[dict], options: dict[str, Any]) -> Muon:
    fused, single = hidden_matrices(module)
    if not single:
        raise PipelineError(
            f"optimizer.name: {config.name!r} updates the weight matrices of an encoder, and there is none to train; "
            "take adamw"
        )
    settings, taken = config.muon, {id(p) for p in (*fused, *single)}
    shared = {"lr": config.lr, "weight_decay": config.weight_decay}
    matrices = [{"params": fused, "parts": 3, **shared}, {"params": single, "parts": 1, **shared}]
    ratio = 1.0 if config.adamw_lr is None else config.adamw_lr / config.lr
    others = [
        {**group, "params": [p for p in group["params"] if id(p) not in taken], "lr_ratio": ratio} for group in groups
    ]
    options["lr"] = config.lr * ratio
    adamw = torch.optim.AdamW([group for group in others if group["params"]], **options)
    clip = QkClip(module, settings.qk_clip_threshold) if config.name == "muonclip" else None
    return Muon([group for group in matrices if group["params"]], adamw, settings, clip)
