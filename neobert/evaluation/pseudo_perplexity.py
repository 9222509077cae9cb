"""Pseudo-perplexity, exactly: every token of a document is predicted once, masked alone.

Definition: ``exp(-1/N sum_i log P(w_i | the others))`` over the N tokens of the documents, special tokens given and not
counted. Algorithm: a document of n tokens becomes n copies, each with one ``[MASK]``; copies of any documents are laid
end to end in flat batches without padding, and only the masked positions are decoded.
Source: J. Salazar et al., Masked Language Model Scoring (arXiv:1910.14659). Cost: n^2 tokens a document, so a limit on
the number of documents is the knob; the alternative of masking many tokens at once is cheaper and measures another
quantity.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer

from neobert.config.pseudo_perplexity import PseudoPerplexityConfig
from neobert.errors import PipelineError
from neobert.jsonl import read_jsonl
from neobert.model.batch import flatten
from neobert.model.heads import MaskedLM
from neobert.model.pretrained import open_pretrained, own_tokenizer
from neobert.model.storage import ModelInfo
from neobert.progress import progress

POOL = 50
"""Documents read for each one measured, so that every class of lengths finds its own."""


@dataclass(frozen=True)
class Scored:
    """A document's length in tokens (special ones not counted) and the sum of its tokens' log-probabilities."""

    tokens: int
    log_probability: float


def read_texts(path: Path, column: str, enough: int) -> list[str]:
    """The documents of a Parquet directory or file, a JSONL file, or a text file (a document a line).

    Shards are read in order until there are ``enough`` documents.

    Raises:
        PipelineError: nothing there, no such column, or no document.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise PipelineError(f"pseudo_perplexity.dataset_path: {path} is no Parquet directory and no file")
    texts: list[str] = []
    for file in files:
        if len(texts) >= enough:
            break
        if file.suffix == ".parquet":
            names = pq.read_schema(file).names
            if column not in names:
                raise PipelineError(f"{file}: has no column {column!r}; its columns are {', '.join(names)}")
            texts += pq.read_table(file, columns=[column])[column].to_pylist()
        elif file.suffix == ".jsonl":
            texts += [row[column] for row in read_jsonl(file, {column: str})]
        else:
            texts += file.read_text(encoding="utf-8").split("\n")  # splitlines() also splits at page breaks and others
    texts = [text for text in texts if text and text.strip()]
    if not texts:
        raise PipelineError(f"{path}: holds no document; nothing can be measured")
    return texts


def choose(lengths: np.ndarray, bins: list[int], count: int, seed: int) -> np.ndarray:
    """Indices of ``count`` documents, the same number from each class of lengths as far as it has them."""
    groups = [g for g in (np.flatnonzero(class_of(lengths, bins) == i) for i in range(len(bins) + 1)) if len(g)]
    draw = np.random.default_rng(seed)
    shuffled = [draw.permutation(group) for group in sorted(groups, key=len)]
    chosen: list[np.ndarray] = []
    left = count
    for number, group in enumerate(shuffled):  # the smallest first, so that what it lacks goes to the larger
        take = min(len(group), -(-left // (len(shuffled) - number)))
        chosen.append(group[:take])
        left -= take
    return np.sort(np.concatenate(chosen))


def class_of(lengths: np.ndarray, bins: list[int]) -> np.ndarray:
    """Number of each length's class: i where it is at most ``bins[i]`` and more than the one before."""
    return np.searchsorted(np.array(bins), lengths, side="left")


def copies(ids: np.ndarray, mask_token_id: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """(ids with one token masked, its position, its original id) for each token between the special ones."""
    for position in range(1, len(ids) - 1):
        masked = ids.copy()
        masked[position] = mask_token_id
        yield masked, position, int(ids[position])


@torch.inference_mode()
def score(
    model: MaskedLM, info: ModelInfo, documents: list[np.ndarray], tokens_per_batch: int, dtype: torch.dtype
) -> list[Scored]:
    """Exact pseudo-log-likelihood of each document (ids with one special token at either end)."""
    sums = np.zeros(len(documents))
    queue: list[tuple[int, np.ndarray, int, int]] = []
    waiting = 0
    with progress("pseudo-perplexity", total=sum(len(d) - 2 for d in documents), unit="tokens") as bar:
        for number, ids in enumerate(documents):
            for masked, position, original in copies(ids, info.mask_token_id):
                if queue and waiting + len(masked) > tokens_per_batch:
                    _flush(model, info, queue, sums, dtype)
                    bar.advance(len(queue))
                    queue, waiting = [], 0
                queue.append((number, masked, position, original))
                waiting += len(masked)
        if queue:
            _flush(model, info, queue, sums, dtype)
            bar.advance(len(queue))
    return [Scored(len(ids) - 2, float(total)) for ids, total in zip(documents, sums, strict=True)]


def _flush(model: MaskedLM, info: ModelInfo, queue: list[Any], sums: np.ndarray, dtype: torch.dtype) -> None:
    device = model.encoder.embeddings.weight.device
    numbers, rows, positions, originals = zip(*queue, strict=True)
    batch = flatten(rows, info.pad_token_id)
    where = batch.cu_seqlens[: len(rows)].long() + torch.tensor(positions)
    batch = batch.to(device, non_blocking=True)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = model.logits(model.encoder(*batch)[where.to(device)]).float()
    found = logits.log_softmax(dim=-1).gather(1, torch.tensor(originals, device=device)[:, None]).squeeze(1)
    np.add.at(sums, np.array(numbers), found.double().cpu().numpy())


def perplexity(scored: list[Scored]) -> float:
    """``exp`` of the mean negative log-probability over all tokens."""
    return math.exp(-sum(s.log_probability for s in scored) / sum(s.tokens for s in scored))


def measure(config: PseudoPerplexityConfig, seed: int) -> dict[str, Any]:
    """Pseudo-perplexity of the configured model and text, over all documents and by class of lengths.

    Raises:
        PipelineError: the model or the text cannot be read, or ``max_length`` is more than the model allows.
    """
    path = Path(config.pretrained_model_path)
    model, info = open_pretrained("pseudo_perplexity.pretrained_model_path", path, own_tokenizer(path))
    length = config.max_length or info.max_length
    if length > info.max_length:
        raise PipelineError(f"pseudo_perplexity.max_length: {length} is more than the model's {info.max_length}")
    tokenizer = AutoTokenizer.from_pretrained(own_tokenizer(path), trust_remote_code=False)
    texts = read_texts(Path(config.dataset_path), config.text_column, POOL * config.num_documents)
    encoded = tokenizer(texts, truncation=True, max_length=length, return_attention_mask=False)["input_ids"]
    documents = [np.array(ids, dtype=np.int64) for ids in encoded if len(ids) > 2]
    lengths = np.array([len(ids) - 2 for ids in documents])
    chosen = choose(lengths, config.length_bins, config.num_documents, seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"no": torch.float32, "bf16": torch.bfloat16}[config.mixed_precision]
    picked = [documents[i] for i in chosen]
    scored = score(model.eval().to(device), info, picked, config.tokens_per_batch, dtype)
    return summarise(scored, config.length_bins)


def summarise(scored: list[Scored], bins: list[int]) -> dict[str, Any]:
    """Figures over all documents and by class of lengths (classes without a document are left out)."""

    def figures(part: list[Scored]) -> dict[str, float]:
        return {
            "pseudo_perplexity": round(perplexity(part), 4),
            "documents": len(part),
            "tokens": sum(s.tokens for s in part),
        }

    classes = class_of(np.array([s.tokens for s in scored]), bins)
    names = [f"{a + 1}-{b}" for a, b in zip([0, *bins], bins, strict=False)] + [f"over-{bins[-1] if bins else 0}"]
    by_length = {name: [s for s, c in zip(scored, classes, strict=True) if c == i] for i, name in enumerate(names)}
    return {**figures(scored), "by_length": {name: figures(part) for name, part in by_length.items() if part}}
