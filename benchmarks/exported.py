"""Sizes of the models that benchmarks compare with sentence-transformers, and the export that it loads.

Heavy imports are inside the function: a contestant's process, whose memory counts, may want the sizes alone.
"""

from __future__ import annotations

from pathlib import Path

SHAPES = {"2x256": (2, 256, 4, 768), "12x768": (12, 768, 12, 3072), "28x768": (28, 768, 12, 3072)}
"""Layers, width, heads and `intermediate_size` by name."""


def write_export(model: Path, target: Path) -> None:
    """Export a model directory, unvalidated: the benchmarks compare the embeddings themselves."""
    from neobert.config.export import ExportConfig
    from neobert.export.export import build_embedder, choose_layout, write_directory
    from neobert.model.storage import load_model

    loaded, info, extra = load_model(model)
    config = ExportConfig()
    target.mkdir()
    embedder = build_embedder(loaded, info, extra)
    write_directory(target, model, loaded, embedder, info, config, choose_layout(config, info))
