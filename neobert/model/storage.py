"""Model directories: ``model.safetensors``, ``config.yaml``, ``tokenizer_info.json``, ``tokenizer/``.

Weights are checked key by key on both sides: a missing, unexpected, misshapen or mistyped tensor is an error that
lists them, never a warning. A tied decoder is stored once, as the embedding table. Cost: one read or write of the
weights.
"""

import dataclasses
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from torch import nn

from neobert.config.model import ModelConfig
from neobert.config.schema import parse
from neobert.errors import PipelineError
from neobert.io import atomic_path, read_json, write_json
from neobert.model.embedding import EmbeddingModel
from neobert.model.heads import MaskedLM

WEIGHTS, CONFIG, TOKENIZER_INFO, TOKENIZER = "model.safetensors", "config.yaml", "tokenizer_info.json", "tokenizer"
TIED = "decoder.weight"
EXTRA_KEYS = ("token_weights",)
"""Tensors that a model directory may hold beside those of ``MaskedLM``."""


@dataclass(frozen=True)
class EmbeddingInfo:
    """How hidden states become embeddings."""

    pooling: str = "mean"
    normalize: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    """Text put before an input, by ``query`` and ``document``."""
    token_weights: bool = False


@dataclass(frozen=True)
class ModelInfo:
    """Everything but the weights that a model directory says of its model."""

    model: ModelConfig
    vocab_size: int
    pad_token_id: int
    cls_token_id: int
    sep_token_id: int
    mask_token_id: int
    unk_token_id: int
    max_length: int
    tokenizer_sha256: str
    embedding: EmbeddingInfo | None = None


def save_model(
    directory: str | Path, state: Mapping[str, torch.Tensor], info: ModelInfo, tokenizer_dir: str | Path
) -> None:
    """Write a model directory: ``state`` is ``MaskedLM.state_dict()`` and possibly ``EmbeddingModel.extra_state()``.

    Raises:
        PipelineError: the state lacks or exceeds the keys of this model, or the directory cannot be written.
    """
    directory = Path(directory)
    state = {key: value.detach().to("cpu").contiguous() for key, value in state.items()}
    if info.model.tie_word_embeddings:
        state.pop(TIED, None)
    with torch.device("meta"):
        expected = MaskedLM(info.model, info.vocab_size, info.pad_token_id).state_dict()
    tied = (TIED,) if info.model.tie_word_embeddings else ()
    check_keys(
        expected, state, allow_missing=tied, allow_unexpected=EXTRA_KEYS, what=f"the state given for {directory}"
    )
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_path(directory / WEIGHTS) as path:
        save_file(state, path, metadata={"format": "pt"})
    described = dataclasses.asdict(info)
    with atomic_path(directory / CONFIG) as path, open(path, "w", encoding="utf-8") as handle:
        _yaml().dump({k: described[k] for k in ("model", "vocab_size", "max_length", "embedding")}, handle)
    ids = {k: v for k, v in described.items() if k.endswith("_token_id") or k == "tokenizer_sha256"}
    write_json(directory / TOKENIZER_INFO, {**ids, "vocab_size": info.vocab_size})
    shutil.rmtree(directory / TOKENIZER, ignore_errors=True)
    shutil.copytree(tokenizer_dir, directory / TOKENIZER)


def read_info(directory: str | Path) -> ModelInfo:
    """The description that a model directory holds.

    Raises:
        PipelineError: a file is missing or says something this version does not know.
    """
    directory = Path(directory)
    try:
        with open(directory / CONFIG, encoding="utf-8") as handle:
            described: dict[str, Any] = _yaml().load(handle)
    except FileNotFoundError as error:
        raise PipelineError(f"{directory / CONFIG}: does not exist; {directory} is not a model directory") from error
    problems: list[str] = []
    config = parse(ModelConfig, described["model"], f"{directory / CONFIG}: model", problems)
    if problems:
        raise PipelineError("\n".join(problems))
    ids = read_json(directory / TOKENIZER_INFO)
    embedding = described["embedding"]
    return ModelInfo(
        model=config,
        max_length=described["max_length"],
        embedding=EmbeddingInfo(**embedding) if embedding is not None else None,
        **ids,
    )


def load_model(directory: str | Path) -> tuple[MaskedLM, ModelInfo, dict[str, torch.Tensor]]:
    """The model of a directory on the CPU, its description, and the tensors it keeps beside (``EXTRA_KEYS``).

    Raises:
        PipelineError: files or tensors are missing, unexpected, or of another shape or type.
    """
    directory = Path(directory)
    info = read_info(directory)
    state = _read_weights(directory / WEIGHTS)
    extra = {key: state.pop(key) for key in EXTRA_KEYS if key in state}
    model = MaskedLM(info.model, info.vocab_size, info.pad_token_id)
    tied = (TIED,) if info.model.tie_word_embeddings else ()
    load_weights(model, state, allow_missing=tied, what=str(directory / WEIGHTS))
    return model, info, extra


def load_embedding_model(directory: str | Path) -> tuple[EmbeddingModel, ModelInfo]:
    """The embedding model of a directory, on the CPU and in evaluation mode.

    Raises:
        PipelineError: as ``load_model``, or the directory does not say how to pool.
    """
    model, info, extra = load_model(directory)
    if info.embedding is None:
        raise PipelineError(f"{directory}: says nothing of embeddings (embedding: null in {CONFIG})")
    embedding = EmbeddingModel(
        model.encoder, info.embedding.pooling, info.embedding.normalize, info.embedding.token_weights
    )
    expected = embedding.extra_state()
    check_keys(expected, extra, what=str(Path(directory) / WEIGHTS))
    if embedding.token_weights is not None:
        embedding.token_weights.data.copy_(extra["token_weights"])
    return embedding.eval(), info


def load_weights(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
    what: str = "the given state",
) -> None:
    """Copy ``state`` into ``module``; every key must match in name, shape and dtype.

    Raises:
        PipelineError: lists the keys that are missing, unexpected, misshapen or mistyped.
    """
    expected = module.state_dict()
    check_keys(expected, state, allow_missing, allow_unexpected, what)
    module.load_state_dict({k: v for k, v in state.items() if k in expected}, strict=False)


def check_keys(
    expected: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
    what: str = "the given state",
) -> None:
    """Compare two states by name, shape and dtype.

    Raises:
        PipelineError: they differ beyond what is allowed.
    """
    problems = [f"missing {k}" for k in expected if k not in given and k not in set(allow_missing)]
    problems += [f"unexpected {k}" for k in given if k not in expected and k not in set(allow_unexpected)]
    for key in expected.keys() & given.keys():
        a, b = expected[key], given[key]
        if a.shape != b.shape:
            problems.append(f"{key} has shape {tuple(b.shape)}, not {tuple(a.shape)}")
        elif a.dtype != b.dtype:
            problems.append(f"{key} has dtype {b.dtype}, not {a.dtype}")
    if problems:
        shown = "\n  ".join(sorted(problems)[:20]) + ("\n  ..." if len(problems) > 20 else "")
        raise PipelineError(f"{what}: {len(problems)} tensor(s) do not match the model:\n  {shown}")


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise PipelineError(f"{path}: does not exist; run `dvc repro` for the stage that makes it")
    return load_file(path)


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)
