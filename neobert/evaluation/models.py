"""The models that an evaluation compares: untrained, pretrained, fine-tuned, and third parties'.

The fine-tuned model is the exported directory: our encoder reads the weights that were exported, and before anything
is scored its embeddings are compared with what sentence-transformers makes of the directory itself, prompts and
truncation included. So the fast path is used and the artefact is what is measured.
Cost: one forward of ``SAMPLE`` texts in each library.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from neobert.config.evaluation import EvaluationConfig
from neobert.errors import PipelineError
from neobert.evaluation.bm25 import BM25Search
from neobert.evaluation.encode import TextEncoder
from neobert.evaluation.protocol import MTEBEncoder, model_meta, weights_revision
from neobert.io import fingerprint
from neobert.model.embedding import EmbeddingModel
from neobert.model.heads import MaskedLM
from neobert.model.pretrained import open_pretrained
from neobert.model.storage import TOKENIZER, TOKENIZER_INFO, ModelInfo, load_embedding_model, read_info
from neobert.network import probe_hub

log = logging.getLogger(__name__)
TOLERANCE = 1e-4
SAMPLE = 32


@dataclass(frozen=True)
class EncodeSettings:
    """How our encoder evaluates."""

    device: str
    dtype: torch.dtype
    batch_size: int
    max_length: int | None
    prompts: dict[str, str] | None
    pooling: str

    @staticmethod
    def of(config: EvaluationConfig) -> "EncodeSettings":
        """Settings of a section ``evaluation``, on a GPU where there is one."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = {"no": torch.float32, "bf16": torch.bfloat16}[config.mixed_precision]
        return EncodeSettings(
            device, dtype, config.mteb_batch_size, config.max_length, config.prompts, config.mteb_pooling
        )


def text_encoder(embedder: EmbeddingModel, tokenizer: Path, info: ModelInfo, settings: EncodeSettings) -> TextEncoder:
    """Our encoder over ``embedder`` with the tokenizer of a directory.

    Raises:
        PipelineError: ``evaluation.max_length`` is more than the model was made for.
    """
    limit = info.max_length
    if settings.max_length is not None and settings.max_length > limit:
        raise PipelineError(
            f"evaluation.max_length: {settings.max_length} is more than the model's {limit} ({tokenizer.parent})"
        )
    length = settings.max_length or limit
    return TextEncoder(
        embedder,
        AutoTokenizer.from_pretrained(tokenizer),
        max_length=length,
        tokens_per_batch=settings.batch_size * length,
        device=settings.device,
        dtype=settings.dtype,
    )


def untrained(directory: Path, tokenizer: Path, seed: int, settings: EncodeSettings) -> MTEBEncoder:
    """The model of ``directory`` with fresh random weights: what its shape and tokenizer alone are worth."""
    _, info = open_pretrained("contrastive.pretrained_from", directory, tokenizer)
    torch.manual_seed(seed)
    encoder = MaskedLM(info.model, info.vocab_size, info.pad_token_id).encoder
    embedder = EmbeddingModel(encoder, settings.pooling, True, token_weights=False)
    revision = fingerprint(["untrained", seed, info.tokenizer_sha256, repr(info.model)])
    return MTEBEncoder(text_encoder(embedder, tokenizer, info, settings), "untrained", revision, settings.prompts or {})


def pretrained(
    key: str, directory: Path, tokenizer: Path, settings: EncodeSettings, label: str = "pretrained"
) -> MTEBEncoder:
    """A masked language model (named by the params' ``key``) as it is, pooled by ``evaluation.mteb_pooling``."""
    model, info = open_pretrained(key, directory, tokenizer)
    embedder = EmbeddingModel(model.encoder, settings.pooling, True, token_weights=False)
    encoder = text_encoder(embedder, tokenizer, info, settings)
    return MTEBEncoder(encoder, label, weights_revision(directory), settings.prompts or {})


def finetuned(directory: Path, export: Path, texts: Sequence[str], settings: EncodeSettings) -> MTEBEncoder:
    """The fine-tuned model, once ``export`` has been shown to embed ``texts`` exactly as it does.

    Raises:
        PipelineError: the export embeds differently.
    """
    embedder, info = load_embedding_model(directory)
    if exported_dtype(export) == "BF16":  # the artefact's weights are the rounded ones
        embedder.encoder.to(torch.bfloat16).float()
    exact = EncodeSettings("cpu", torch.float32, settings.batch_size, None, None, settings.pooling)
    check_export(
        text_encoder(copy.deepcopy(embedder), directory / TOKENIZER, info, exact), own_prompts(info), export, texts
    )
    prompts = own_prompts(info) if settings.prompts is None else settings.prompts
    encoder = text_encoder(embedder, directory / TOKENIZER, info, settings)
    return MTEBEncoder(encoder, "finetuned", weights_revision(export), prompts)


def check_export(encoder: TextEncoder, prompts: dict[str, str], export: Path, texts: Sequence[str]) -> None:
    """Compare our embeddings of ``texts`` with those of sentence-transformers on the exported directory.

    Raises:
        PipelineError: different prompts, maximum length, or embeddings (more than ``TOLERANCE`` in any number).
    """
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(
        str(export), device="cpu", trust_remote_code=True, model_kwargs={"dtype": torch.float32}
    )
    if theirs.max_seq_length != encoder.max_length:
        raise PipelineError(
            f"{export}: reads {theirs.max_seq_length} tokens, the trained model {encoder.max_length}; export it again"
        )
    for name, prompt in prompts.items():
        if (theirs.prompts or {}).get(name, "") != prompt:
            raise PipelineError(f"{export}: its prompt {name!r} is not the trained model's {prompt!r}; export it again")
    for name, method in (("query", theirs.encode_query), ("document", theirs.encode_document)):
        ours = encoder.encode(list(texts), prompts.get(name, ""), f"check of the export ({name})")
        difference = float(np.abs(ours - method(list(texts), show_progress_bar=False)).max())
        if not difference <= TOLERANCE:
            raise PipelineError(
                f"{export}: sentence-transformers' embeddings ({name}) differ from the trained model's by up to "
                f"{difference:.2g}, more than {TOLERANCE:g}; the export is wrong: run `dvc repro -f export`"
            )
        log.info("export check (%s): largest difference %.1e over %d texts", name, difference, len(texts))


def exported_dtype(export: Path) -> str:
    """The type that an exported directory stores its weights in, by safetensors' name."""
    for path in sorted(export.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            return tensors.get_slice(next(iter(tensors.keys()))).get_dtype()
    raise PipelineError(f"{export}: holds no model.safetensors; run `dvc repro export`")


def open_model(path: str, label: str, settings: EncodeSettings, trust_remote_code: bool = False) -> Any:
    """A model for MTEB by what it is: ``bm25``, a model directory of this pipeline, or a sentence-transformers model.

    A directory of ours that says how to embed is used with its own pooling and prompts, any other as ``pretrained``.

    Raises:
        PipelineError: it cannot be loaded.
    """
    if path == "bm25":
        return BM25Search()
    directory = Path(path)
    if not (directory / TOKENIZER_INFO).is_file():
        return third_party(path, label, settings, trust_remote_code)
    if read_info(directory).embedding is None:
        return pretrained("evaluation.models", directory, directory / TOKENIZER, settings, label)
    embedder, info = load_embedding_model(directory)
    prompts = settings.prompts if settings.prompts is not None else own_prompts(info)
    return MTEBEncoder(
        text_encoder(embedder, directory / TOKENIZER, info, settings), label, weights_revision(directory), prompts
    )


def own_prompts(info: ModelInfo) -> dict[str, str]:
    """The prompts a model was trained with."""
    return info.embedding.prompts if info.embedding else {}


def third_party(path: str, label: str, settings: EncodeSettings, trust_remote_code: bool) -> Any:
    """A sentence-transformers model by directory or hub name, wrapped by MTEB itself, with its own prompts.

    Raises:
        PipelineError: it cannot be loaded.
    """
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    if not Path(path).exists():
        probe_hub(f"evaluation.models: {path!r} is no directory, so it")
    try:
        model = SentenceTransformer(path, device=settings.device, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise PipelineError(f"{path!r} cannot be loaded by sentence-transformers: {error}") from error
    if settings.max_length is not None:
        limit_length(model, settings.max_length)
    if settings.prompts is not None:
        model.prompts, model.default_prompt_name = {}, None
    wrapped = SentenceTransformerEncoderWrapper(model)
    if settings.prompts is not None:  # set here, as MTEB's constructor drops prompts for tasks it does not know
        wrapped.model_prompts = settings.prompts
    revision = weights_revision(path) if Path(path).is_dir() else wrapped.mteb_model_meta.revision
    wrapped.mteb_model_meta = model_meta(label, str(revision))
    return wrapped


def limit_length(model: Any, length: int) -> None:
    """Let a sentence-transformers model read at most ``length`` tokens of a text."""
    tokenizer = getattr(model[0], "tokenizer", None)
    if isinstance(tokenizer, Tokenizer):  # static embeddings: they hold the bare tokenizer, and no length of their own
        own = tokenizer.truncation
        tokenizer.enable_truncation(min(length, own["max_length"] if own else length))
    else:
        model.max_seq_length = min(length, model.max_seq_length or length)
