"""Our weights as transformers' own EuroBERT classes, without remote code.

The architectures are the same function: pre-norm RMSNorm blocks, SwiGLU, rotate-half RoPE, no biases. A fused
``[q | k | v]`` is split and tensors are renamed; no number changes. What the classes cannot express is listed by
``obstacles``: LayerNorm, GELU, learned positions, nGPT, and a decoder bias, which EuroBERT couples to biases in its
feed-forward. Cost: one copy of the weights.
"""

import torch
from transformers import EuroBertConfig, EuroBertForMaskedLM

from neobert.config.model import ModelConfig
from neobert.model.storage import ModelInfo

SINCE = "5.3"
"""The first release of transformers with EuroBERT; pyproject.toml asks for it."""

LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.up_proj",
    "mlp.w3": "mlp.down_proj",
}


def obstacles(config: ModelConfig) -> list[str]:
    """What of this model EuroBERT's classes cannot express; empty when the native format fits."""
    found = {
        "ngpt: true": config.ngpt,
        "rope: false": not config.rope,
        "rms_norm: false": not config.rms_norm,
        f"hidden_act: {config.hidden_act}": config.hidden_act != "swiglu",
        "decoder_bias: true": config.decoder_bias,
    }
    return [name for name, present in found.items() if present]


def native_config(info: ModelInfo, classifier_pooling: str = "mean") -> EuroBertConfig:
    """EuroBERT's configuration of this model; every special id is set, for its defaults are another vocabulary's."""
    model = info.model
    return EuroBertConfig(
        vocab_size=info.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.mlp_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_attention_heads,
        hidden_act="silu",
        # A rotary model has no table that ends, but tools read this as the longest input.
        max_position_embeddings=max(model.max_position_embeddings, info.max_length),
        rms_norm_eps=model.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tie_word_embeddings,
        attention_bias=False,
        mlp_bias=False,
        pad_token_id=info.pad_token_id,
        bos_token_id=info.cls_token_id,
        eos_token_id=info.sep_token_id,
        mask_token_id=info.mask_token_id,
        classifier_pooling=classifier_pooling,
        use_cache=False,
    )


def native_state(state: dict[str, torch.Tensor], info: ModelInfo) -> dict[str, torch.Tensor]:
    """``MaskedLM.state_dict()`` of a model without ``obstacles`` under EuroBERT's names."""
    renamed = {
        "model.embed_tokens.weight": state["encoder.embeddings.weight"],
        "model.norm.weight": state["encoder.norm.weight"],
        "lm_head.weight": state["decoder.weight"],
    }
    for i in range(info.model.num_hidden_layers):
        ours, theirs = f"encoder.layers.{i}.", f"model.layers.{i}."
        for source, target in LAYER_NAMES.items():
            renamed[f"{theirs}{target}.weight"] = state[f"{ours}{source}.weight"]
        for name, part in zip("qkv", state[f"{ours}attention.qkv.weight"].chunk(3), strict=True):
            renamed[f"{theirs}self_attn.{name}_proj.weight"] = part
    return renamed


def native_model(state: dict[str, torch.Tensor], info: ModelInfo, classifier_pooling: str) -> EuroBertForMaskedLM:
    """transformers' masked-language model holding these weights, in fp32 on the CPU."""
    renamed = native_state(state, info)
    model = EuroBertForMaskedLM(native_config(info, classifier_pooling))
    model.load_state_dict(renamed, strict=True)
    return model.eval()
