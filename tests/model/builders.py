"""Small models and batches that the model's tests share."""

import numpy as np
import torch

from neobert.config.model import ModelConfig
from neobert.model.batch import FlatBatch, flatten
from neobert.model.heads import MaskedLM

VOCAB, PAD = 128, 0

VARIANTS = {
    "default": {},
    "ngpt": {"ngpt": True},
    "learned positions": {"rope": False},
    "layernorm, gelu": {"rms_norm": False, "hidden_act": "gelu"},
    "untied, bias": {"tie_word_embeddings": False, "decoder_bias": True},
}


def config(**changes) -> ModelConfig:
    """A model small enough that a test costs milliseconds."""
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 64,
    }
    return ModelConfig(**{**small, **changes})


def masked_lm(seed: int = 0, **changes) -> MaskedLM:
    """A model whose every parameter is away from its initial symmetry."""
    torch.manual_seed(seed)
    model = MaskedLM(config(**changes), VOCAB, PAD)
    with torch.no_grad():
        for _name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter)).add_(0.01 * torch.randn_like(parameter))
            elif not model.config.ngpt:
                parameter.mul_(5.0)
    return model


def sequences(lengths, seed: int = 0) -> list[np.ndarray]:
    """Random token ids that are never padding."""
    generator = np.random.default_rng(seed)
    return [generator.integers(5, VOCAB, size=n) for n in lengths]


def batch(lengths, seed: int = 0, multiple: int = 1) -> FlatBatch:
    """A flat batch of random sequences."""
    return flatten(sequences(lengths, seed), PAD, multiple)
