"""What the training model answers on fixed inputs, kept in a file for a fresh process to compare with.

Inputs: ragged sequences of random ids (one of a single token, one of the maximum length, capped), and texts with every
prompt. Outputs: hidden states and logits of each token, and embeddings. Cost: a few forwards in fp32 on the CPU.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from neobert.io import write_json
from neobert.model.batch import flatten
from neobert.model.embedding import EmbeddingModel
from neobert.model.heads import MaskedLM
from neobert.model.storage import EmbeddingInfo, ModelInfo

LONGEST = 256
TEXTS = (
    "def add(a, b): return a + b",
    "Return the largest connected component of a graph, and the nodes that were visited on the way there.",
    "Ein Satz mit Umlauten: über, größer, naïve café.",
    "x",
    "the quick brown fox jumps over the lazy dog " * 12,
    "",
)


@dataclass(frozen=True)
class Probe:
    """Files of one probe: tensors and their description."""

    tensors: Path
    description: Path


@torch.inference_mode()
def write_probe(
    directory: Path, model: MaskedLM, embedder: EmbeddingModel, info: ModelInfo, tokenizer_dir: Path
) -> Probe:
    """Run the training model on the probe's inputs and write what it answers into ``directory``."""
    model.eval()
    sequences = _sequences(info)
    batch = flatten(sequences, info.pad_token_id)
    hidden = model.encoder(*batch)
    tensors = {"hidden": hidden, "logits": model.logits(hidden)}
    for i, sequence in enumerate(sequences):
        tensors[f"ids.{i}"] = torch.from_numpy(sequence)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    description: dict[str, Any] = {"sequences": len(sequences), "texts": list(TEXTS), "prompts": {}}
    encoded = tokenizer(list(TEXTS), truncation=True, max_length=info.max_length)
    description["token_ids"] = encoded["input_ids"]
    description["special"] = {k: getattr(info, k) for k in ("pad_token_id", "mask_token_id", "cls_token_id")}
    description["max_length"] = info.max_length
    prompts = {"query": "", "document": "", **needs_embedding(info).prompts}
    description["prompts"] = prompts
    for name, prompt in prompts.items():
        tensors[f"embeddings.{name}"] = _embed(embedder, tokenizer, prompt, info)
    probe = Probe(directory / "probe.safetensors", directory / "probe.json")
    save_file({k: v.contiguous() for k, v in tensors.items()}, probe.tensors)
    write_json(probe.description, description)
    return probe


def _sequences(info: ModelInfo) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    lengths = [1, 7, 33, min(info.max_length, LONGEST)]
    # Any id but padding, which transformers' masks leave out by position, not by id; ids of padded rows included.
    ids = np.setdiff1d(np.arange(info.vocab_size), [info.pad_token_id])
    return [generator.choice(ids, size=n) for n in lengths]


def _embed(embedder: EmbeddingModel, tokenizer, prompt: str, info: ModelInfo) -> torch.Tensor:
    encoded = tokenizer([prompt + text for text in TEXTS], truncation=True, max_length=info.max_length)
    batch = flatten([np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]], info.pad_token_id)
    return embedder.eval()(batch, len(TEXTS))


def needs_embedding(info: ModelInfo) -> EmbeddingInfo:
    """How an export pools: as trained, or mean and normalised for a model that was only pretrained."""
    return info.embedding or EmbeddingInfo()
