"""Other people's weights: Hugging Face directories converted, exactly, into our encoder's names.

Three layouts, told apart by ``model_type`` in ``config.json``; only weights and configuration are read, and no code
of the directory is run:

- ``eurobert``: transformers' native class. q, k, v are joined; grouped keys and values are repeated for each head of
  their group, which is the same function.
- ``neobert``: the published NeoBERT. Its qkv is interleaved by head, its RoPE pairs neighbouring channels (ours pairs
  i with i + D/2, so rows of q and k are permuted), gate and up are one matrix ``w12``, the decoder is untied and has
  a bias; both are kept.
- ``neobert_pipeline``: our own export with its modelling code; names are ours.

Every tensor must be used and none may be missing. No pickle is read: weights must be safetensors. Cost: one more copy
of the weights in memory.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from neobert.config.model import ModelConfig
from neobert.errors import PipelineError
from neobert.io import read_json
from neobert.model.storage import CONFIG, TIED

log = logging.getLogger(__name__)
State = dict[str, torch.Tensor]
RECOMPUTED = ("inv_freq", "freqs_cis")
"""Buffers that some directories store and every model computes for itself."""


def convert(source: Path, name: str) -> tuple[ModelConfig, State, int, str]:
    """(config, state under our names, longest input, kind) of a Hugging Face directory.

    Raises:
        PipelineError: see ``open_pretrained``.
    """
    if not source.is_dir():
        raise PipelineError(f"{name} does not exist; run `dvc repro` for the stage that makes it")
    if not (source / "config.json").is_file():
        raise PipelineError(f"{name} has neither {CONFIG} nor config.json; it is no model directory")
    theirs = read_json(source / "config.json")
    converters = {"eurobert": from_eurobert, "neobert": from_neobert, "neobert_pipeline": from_export}
    kind = theirs.get("model_type")
    if kind not in converters:
        raise PipelineError(f"{name} is a {kind!r} model, not one of {', '.join(converters)}")
    left = {k.removeprefix("model."): v for k, v in read_weights(source, name).items() if not k.endswith(RECOMPUTED)}
    try:
        config, state, max_length = converters[kind](theirs, left, name)
    except KeyError as error:
        raise PipelineError(
            f"{name} has no {error.args[0]}, which a {kind} model must have; download it again"
        ) from error
    if left:
        raise PipelineError(f"{name} has tensors that a {kind} encoder does not: {', '.join(sorted(left)[:8])}")
    if not config.tie_word_embeddings and TIED not in state:
        log.warning("%s has no decoder; the embedding table serves as one", name)
        config = dataclasses.replace(config, tie_word_embeddings=True, decoder_bias=False)
    return config, state, max_length, kind


def read_weights(source: Path, name: str) -> State:
    """Every tensor of a Hugging Face directory, in fp32, from one safetensors file or an index of several.

    Raises:
        PipelineError: there are none, or a shard is missing.
    """
    index = source / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(read_json(index)["weight_map"].values()))
    elif (source / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        raise PipelineError(
            f"{name} has no model.safetensors; pickled weights (.bin) are not read, as they can run code: load and "
            "save them with safetensors first"
        )
    state: State = {}
    for file in files:
        if not (source / file).is_file():
            raise PipelineError(f"{name} lacks {file}, which its index names; download it again")
        state.update(load_file(source / file))
    return {key: value.float() for key, value in state.items()}


def from_eurobert(theirs: dict[str, Any], state: State, name: str) -> tuple[ModelConfig, State, int]:
    """(config, state, longest input) of transformers' native EuroBERT.

    Raises:
        PipelineError: biases, another activation, a scaled RoPE, or heads that do not make up the width.
    """
    heads, hidden = theirs["num_attention_heads"], theirs["hidden_size"]
    groups = theirs.get("num_key_value_heads") or heads
    rope = theirs.get("rope_parameters") or {"rope_theta": theirs.get("rope_theta"), "rope_type": "default"}
    refuse(
        name,
        {
            "attention_bias": theirs.get("attention_bias", False),
            "mlp_bias": theirs.get("mlp_bias", False),
            f"hidden_act {theirs['hidden_act']!r}": theirs["hidden_act"] != "silu",
            f"rope_type {rope.get('rope_type')!r}": rope.get("rope_type", "default") != "default",
            "rope_scaling": bool(theirs.get("rope_scaling")),
            "head_dim other than hidden_size / heads": (theirs.get("head_dim") or hidden // heads) * heads != hidden,
        },
    )
    config = base_config(theirs, inner=theirs["intermediate_size"], eps=theirs["rms_norm_eps"], name=name)
    tied = bool(theirs.get("tie_word_embeddings", "lm_head.weight" not in state))
    config.update(rope_theta=float(rope["rope_theta"]), tie_word_embeddings=tied)
    ours = {
        "encoder.embeddings.weight": state.pop("embed_tokens.weight"),
        "encoder.norm.weight": state.pop("norm.weight"),
    }
    decoder = state.pop("lm_head.weight", None)
    if not tied and decoder is not None:
        ours["decoder.weight"] = decoder
    names = {
        "attention_norm": "input_layernorm",
        "attention.out": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "mlp.w1": "mlp.gate_proj",
        "mlp.w2": "mlp.up_proj",
        "mlp.w3": "mlp.down_proj",
    }
    for i in range(theirs["num_hidden_layers"]):
        layer = f"layers.{i}."
        for mine, other in names.items():
            ours[f"encoder.{layer}{mine}.weight"] = state.pop(f"{layer}{other}.weight")
        q, k, v = (state.pop(f"{layer}self_attn.{part}_proj.weight") for part in "qkv")
        k, v = (repeated(w, groups, heads // groups) for w in (k, v))
        ours[f"encoder.{layer}attention.qkv.weight"] = torch.cat((q, k, v))
    return ModelConfig(**config), ours, theirs["max_position_embeddings"]


def repeated(weight: torch.Tensor, groups: int, times: int) -> torch.Tensor:
    """Grouped keys or values [groups * D, H] -> one copy a head, [groups * times * D, H]."""
    return weight.view(groups, -1, weight.shape[1]).repeat_interleave(times, dim=0).flatten(0, 1)


def from_neobert(theirs: dict[str, Any], state: State, name: str) -> tuple[ModelConfig, State, int]:
    """(config, state, longest input) of the published NeoBERT layout; the inner width is read off the weights.

    Raises:
        PipelineError: variants that were never published in this layout (nGPT, learned positions, GELU).
    """
    variants = {"ngpt": theirs.get("ngpt", False), "rope: false": not theirs.get("rope", True)}
    act = theirs.get("hidden_act", "swiglu")
    refuse(name, {**variants, f"hidden_act {act!r}": str(act).lower() != "swiglu"})
    inner = state["transformer_encoder.0.ffn.w12.weight"].shape[0] // 2
    config = base_config(theirs, inner=inner, eps=theirs.get("norm_eps", 1e-6), name=name)
    config.update(rope_theta=float(theirs.get("rope_theta", 10000.0)), tie_word_embeddings=False)
    config.update(max_position_embeddings=theirs["max_length"], decoder_bias="decoder.bias" in state)
    ours = {
        "encoder.embeddings.weight": state.pop("encoder.weight"),
        "encoder.norm.weight": state.pop("layer_norm.weight"),
    }
    ours |= {key: state.pop(key) for key in ("decoder.weight", "decoder.bias") if key in state}
    for i in range(theirs["num_hidden_layers"]):
        source, target = f"transformer_encoder.{i}.", f"encoder.layers.{i}."
        ours[f"{target}attention.qkv.weight"] = joined_qkv(
            state.pop(f"{source}qkv.weight"), theirs["num_attention_heads"]
        )
        gate, up = state.pop(f"{source}ffn.w12.weight").chunk(2)
        ours[f"{target}mlp.w1.weight"], ours[f"{target}mlp.w2.weight"] = gate, up
        for mine, other in (
            ("attention.out", "wo"),
            ("mlp.w3", "ffn.w3"),
            ("attention_norm", "attention_norm"),
            ("mlp_norm", "ffn_norm"),
        ):
            ours[f"{target}{mine}.weight"] = state.pop(f"{source}{other}.weight")
    return ModelConfig(**config), ours, theirs["max_length"]


def joined_qkv(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """[N, (q k v), D] rows with RoPE pairs (2i, 2i + 1) -> [(q k v), N, D] rows with pairs (i, i + D/2)."""
    hidden = weight.shape[1]
    q, k, v = weight.view(heads, 3, -1, hidden).unbind(1)
    q, k = (torch.cat((w[:, 0::2], w[:, 1::2]), dim=1) for w in (q, k))
    return torch.cat([w.reshape(hidden, hidden) for w in (q, k, v)])


def from_export(theirs: dict[str, Any], state: State, name: str) -> tuple[ModelConfig, State, int]:
    """(config, state, longest input) of our own export with modelling code."""
    config = base_config(theirs, inner=theirs["inner_size"], eps=theirs["norm_eps"], name=name)
    same = ("hidden_act", "rope", "rope_theta", "rms_norm", "ngpt", "decoder_bias", "tie_word_embeddings")
    config.update({key: theirs[key] for key in same})
    if config["hidden_act"] == "gelu":
        config["intermediate_size"] = theirs["inner_size"]
    ours = dict(state)  # the names are ours already; that all are there and none too many is checked when they load
    state.clear()
    return ModelConfig(**config), ours, theirs["max_position_embeddings"]


def base_config(theirs: dict[str, Any], *, inner: int, eps: float, name: str) -> dict[str, Any]:
    """Keys of ``ModelConfig`` that every layout shares; ``intermediate_size`` is what the 2/3 rule takes to ``inner``.

    Raises:
        PipelineError: the rule cannot give ``inner``, which must be a multiple of 8.
    """
    if inner % 8:
        raise PipelineError(f"{name} has a feed-forward of width {inner}, not a multiple of 8")
    return {
        "hidden_size": theirs["hidden_size"],
        "num_hidden_layers": theirs["num_hidden_layers"],
        "num_attention_heads": theirs["num_attention_heads"],
        "intermediate_size": inner * 3 // 2,
        "max_position_embeddings": theirs.get("max_position_embeddings", 0),
        "vocab_size": theirs["vocab_size"],
        "norm_eps": eps,
    }


def refuse(name: str, parts: dict[str, bool]) -> None:
    """Refuse a model with any of ``parts``.

    Raises:
        PipelineError: lists the parts that are present.
    """
    present = [part for part, there in parts.items() if there]
    if present:
        raise PipelineError(f"{name} has {', '.join(present)}, which this encoder lacks")
