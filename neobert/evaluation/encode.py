"""Text to embeddings: length-sorted, token-budgeted batches without padding.

Algorithm: texts are ordered by their length in characters, longest first (a too large batch fails at once,
and the estimate of the time left errs on the safe side), and tokenised a block at a time in a background
thread, so that the Rust tokenizer works while the model does. Within a block the order is by exact token
count; consecutive texts are cut into batches of at most `tokens_per_batch` tokens, flattened into one
stream without padding, encoded, pooled, and written back in the order of the input.

Cost: every token is computed once. `SentenceTransformer.encode` sorts too, but batches by a number of
texts, pads each batch to its longest, and tokenises between two forwards while the accelerator waits.
The alternative that lost: sorting all texts by exact token count needs every text tokenised first, which
delays the first batch and holds all ids in memory, for order that only matters within a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from neobert.errors import PipelineError
from neobert.model.batch import flatten
from neobert.model.embedding import EmbeddingModel
from neobert.progress import progress

BLOCK = 2048
"""Texts tokenised together: a few batches ahead of the model, small against the memory of the texts."""
HELD = 65_536
"""Embeddings kept on the device before they are copied: a copy a batch would make the host wait for each."""
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 65_536}
"""A CPU's forward stays in its cache (16k tokens measured 1.2x slower); a GPU's fills it."""


def batch_bounds(lengths: np.ndarray, tokens_per_batch: int) -> list[int]:
    """Boundaries [0, ..., len(lengths)] of consecutive batches of at most `tokens_per_batch` tokens.

    A text longer than the budget is a batch of its own.
    """
    ends = np.cumsum(lengths)
    bounds = [0]
    while bounds[-1] < len(lengths):
        start = bounds[-1]
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + tokens_per_batch, side="right"))
        bounds.append(max(stop, start + 1))
    return bounds


def collect(held: list[tuple[np.ndarray, Tensor]], result: np.ndarray) -> None:
    """Write embeddings that the device holds to their rows of `result`; this waits for the device."""
    if held:
        result[np.concatenate([rows for rows, _ in held])] = torch.cat([e for _, e in held]).float().cpu().numpy()


class TextEncoder:
    """An `EmbeddingModel` with its tokenizer: `encode(texts) -> float32[N, H]`.

    `embedder` is moved to `device` and `dtype` and put into evaluation mode. `max_length` counts the special
    tokens. `tokens_per_batch` bounds the memory of a forward, whose activations are proportional to it; at most
    `TOKENS_PER_BATCH` of the device are used, as more measured no faster.
    """

    def __init__(
        self,
        embedder: EmbeddingModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        tokens_per_batch: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = torch.device(device)
        self.embedder = embedder.to(device=self.device, dtype=dtype).eval()
        self.max_length = max_length
        limit = TOKENS_PER_BATCH[self.device.type]
        self.tokens_per_batch = min(tokens_per_batch or limit, limit)
        self.pad_token_id = int(tokenizer.pad_token_id)
        # A copy: truncation is state of the Rust object, and the caller's tokenizer is not ours to change.
        self._rust = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._rust.enable_truncation(max_length)
        self._rust.no_padding()

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text with its special tokens, truncated to `max_length`."""
        return [np.array(e.ids, dtype=np.int64) for e in self._rust.encode_batch_fast(list(texts))]

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], prompt: str = "", description: str = "encode") -> np.ndarray:
        """Embeddings float32[N, H] of `texts` in their order, each preceded by `prompt`.

        Raises PipelineError where an element is not a string.
        """
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise PipelineError(f"{description}: text {index} is {type(text).__name__}, expected a string")
        if not texts:
            return np.zeros((0, self.embedding_size()), dtype=np.float32)
        order = np.argsort([-len(text) for text in texts], kind="stable")
        result = np.empty((len(texts), self.embedding_size()), dtype=np.float32)
        held: list[tuple[np.ndarray, Tensor]] = []
        with progress(description, total=len(texts), unit="texts") as bar:
            for indices, ids in self._blocks(texts, prompt, order):
                held += self._encode_block(indices, ids)
                bar.advance(len(indices))
                if sum(len(rows) for rows, _ in held) >= HELD:
                    collect(held, result)
                    held = []
            collect(held, result)
        return result

    def embedding_size(self) -> int:
        """Width H of an embedding."""
        return int(self.embedder.encoder.embeddings.weight.shape[1])

    def _blocks(
        self, texts: Sequence[str], prompt: str, order: np.ndarray
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """(indices, ids) of each block, tokenised one block ahead."""
        blocks = [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]
        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as pool:

            def submit(block: np.ndarray) -> Future[list[np.ndarray]]:
                return pool.submit(self.tokenize, [prompt + texts[i] for i in block])

            ahead = submit(blocks[0])
            for number, block in enumerate(blocks, start=1):
                ids = ahead.result()
                if number < len(blocks):
                    ahead = submit(blocks[number])
                yield block, ids

    def _encode_block(self, indices: np.ndarray, ids: list[np.ndarray]) -> Iterator[tuple[np.ndarray, Tensor]]:
        lengths = np.array([len(row) for row in ids])
        by_length = np.argsort(-lengths, kind="stable")
        for start, stop in pairwise(batch_bounds(lengths[by_length], self.tokens_per_batch)):
            chosen = by_length[start:stop]
            batch = flatten([ids[i] for i in chosen], self.pad_token_id)
            if self.device.type == "cuda":
                batch = batch.pin_memory().to(self.device, non_blocking=True)
            yield indices[chosen], self.embedder(batch, len(chosen))
