"""Write a trained model in a format that other tools load, and prove that they load the same model.

The directory is written beside its place and moved there once a fresh process has loaded it and agreed with the
training model. Cost: two copies of the weights and a few forwards on the CPU.
"""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import torch

from neobert.config.export import ExportConfig
from neobert.export.card import card
from neobert.export.custom import custom_model, write_code
from neobert.export.modules import write_modules
from neobert.export.native import native_model, obstacles
from neobert.export.onnx import write_onnx
from neobert.export.probe import needs_embedding, write_probe
from neobert.export.provenance import provenance
from neobert.export.tokenizer import write_tokenizer
from neobert.export.validate import validate
from neobert.io import clear_write_errors, write_text
from neobert.model.embedding import EmbeddingModel
from neobert.model.heads import MaskedLM
from neobert.model.storage import TOKENIZER, ModelInfo, check_keys, load_model

log = logging.getLogger(__name__)
Layout = Literal["native", "neobert"]
Facts = dict[str, dict[str, str]]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(
    source: Path, target: Path, config: ExportConfig, facts: Facts | None = None
) -> tuple[Layout, dict[str, float]]:
    """Export the model directory ``source`` to ``target``: (format written, measured differences by name).

    ``facts`` are further tables for the model card, by heading.

    Raises:
        PipelineError: what was written is not the trained model.
    """
    model, info, extra = load_model(source)
    model.eval()
    layout = choose_layout(config, info)
    embedder = build_embedder(model, info, extra)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        staged = Path(scratch) / "model"
        staged.mkdir()
        with clear_write_errors(target):
            write_directory(staged, source, model, embedder, info, config, layout)
        tables = {"Provenance": provenance(source, info), **(facts or {})}
        write_text(staged / "README.md", card(config, info, tables, layout))
        probe = write_probe(Path(scratch), model, embedder, info, source / TOKENIZER)
        found = validate(staged, probe, config.dtype)
        staged.rename(target)
    log.info("exported %s to %s as %s", source, target, layout)
    return layout, found


def choose_layout(config: ExportConfig, info: ModelInfo) -> Layout:
    """The format asked for, or ``neobert`` where the native classes lack a part of the model, which is logged."""
    lacking = obstacles(info.model)
    if config.format == "native" and lacking:
        named = ", ".join(f"model.{name}" for name in lacking)
        log.warning("export.format: native cannot express %s; exporting as neobert, with its own code", named)
        return "neobert"
    return config.format


def build_embedder(model: MaskedLM, info: ModelInfo, extra: dict[str, torch.Tensor]) -> EmbeddingModel:
    """The embedding model of a loaded directory; one that was only pretrained pools by its normalised mean."""
    described = needs_embedding(info)
    embedder = EmbeddingModel(model.encoder, described.pooling, described.normalize, described.token_weights)
    check_keys(embedder.extra_state(), extra, what="tensors beside the model")
    if embedder.token_weights is not None:
        embedder.token_weights.data.copy_(extra["token_weights"])
    return embedder.eval()


def write_directory(
    target: Path,
    source: Path,
    model: MaskedLM,
    embedder: EmbeddingModel,
    info: ModelInfo,
    config: ExportConfig,
    layout: Layout,
) -> None:
    """Write weights, configuration, tokenizer and sentence-transformers files into ``target``."""
    described = needs_embedding(info)
    pooling = "bos" if described.pooling == "cls" else "mean"
    state = model.state_dict()
    written = native_model(state, info, pooling) if layout == "native" else custom_model(state, info, pooling)
    torch.nn.Module.to(written, DTYPES[config.dtype])  # transformers' own annotation of .to lacks dtypes
    written.save_pretrained(target, max_shard_size=f"{config.max_shard_size_mb}MB")
    if layout == "neobert":
        write_code(target)
    if config.onnx:
        write_onnx(target, state, info)
    write_tokenizer(source / TOKENIZER, target, info)
    weights = embedder.weight_table()
    write_modules(target, info, described, None if weights is None else weights.detach())
