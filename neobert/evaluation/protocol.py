"""MTEB 2.x's encoder protocol around our encoder, and names that cannot be confused.

MTEB keys results by a model's name and revision, and gives every local model the same name
(``no_model_name/available``). Here the name is the label in the reports and the revision is the sha256 of the
weights, so that a result always says which weights it belongs to.
Source: ``mteb.models.models_protocols.EncoderProtocol``. Cost: none beyond the encoding.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mteb.models.abs_encoder import get_prompt
from mteb.models.model_meta import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from mteb.types import PromptType

from neobert.errors import PipelineError
from neobert.io import fingerprint, sha256_file


class Embedder(Protocol):
    """What MTEB needs of an encoder of ours."""

    def encode(self, texts: list[str], prompt: str = "", description: str = "encode") -> np.ndarray: ...


def weights_revision(directory: str | Path) -> str:
    """sha256 over the weight files (safetensors, else PyTorch's) below ``directory``.

    Raises:
        PipelineError: there are none.
    """
    directory = Path(directory)
    for pattern in ("*.safetensors", "*.bin", "*.npy"):
        files = sorted(directory.rglob(pattern))
        if files:
            return fingerprint([[f.relative_to(directory).as_posix(), sha256_file(f)] for f in files])
    raise PipelineError(f"{directory}: holds no weights (*.safetensors); it is not a model directory")


def model_meta(label: str, revision: str) -> ModelMeta:
    """Name and revision of a model for MTEB's results."""
    return ModelMeta.create_empty({"name": f"neobert/{label}", "revision": revision})


class MTEBEncoder:
    """MTEB's ``EncoderProtocol``: batches of texts in, embeddings float32[N, H] out, cosine similarity.

    ``prompts`` go by MTEB's order of preference: task-query, task, type-query, type, query or document.
    """

    def __init__(self, embedder: Embedder, label: str, revision: str, prompts: dict[str, str]) -> None:
        self.embedder, self.label, self.prompts = embedder, label, prompts
        self.mteb_model_meta = model_meta(label, revision)

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: PromptType | None = None, **_: Any) -> np.ndarray:
        """Embeddings of the ``text`` column of MTEB's batches.

        Raises:
            PipelineError: an embedding is not finite; the scores would be noise.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = get_prompt(self.prompts, task_metadata, prompt_type) or ""
        part = f" ({prompt_type.value})" if prompt_type else ""
        embeddings = self.embedder.encode(texts, prompt, f"{self.label}: {task_metadata.name}{part}")
        if not np.isfinite(embeddings).all():
            row = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
            raise PipelineError(
                f"{self.label}: the embedding of text {row} of {task_metadata.name} is not finite; the weights are "
                "broken or evaluation.mixed_precision is too coarse for them"
            )
        return embeddings

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine similarity [N1, N2]."""
        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine similarity [N] of rows."""
        return pairwise_cos_sim(embeddings1, embeddings2)
