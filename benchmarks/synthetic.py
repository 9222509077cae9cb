"""Packed rows of random tokens with realistic lengths, made by the project's own packer: the same for every machine."""

from __future__ import annotations

import numpy as np

from neobert.packing.cut import split_documents
from neobert.packing.plan import best_fit_decreasing

PAD, CLS, SEP, MASK, FIRST = 0, 1, 2, 3, 5


class SyntheticRows:
    """Rows as `neobert.packing.shards.PackedDataset` gives them.

    Document lengths are log-normal (sigma 0.9, as in web text) with the given mean, at most `length`.
    """

    def __init__(self, rows: int, length: int, vocab_size: int, mean_document: float, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        sigma = 0.9
        count = int(2 * rows * length / mean_document) + 1000
        drawn = generator.lognormal(np.log(mean_document) - sigma**2 / 2, sigma, count)
        lengths = np.clip(drawn, 8, None).astype(np.int64)
        pieces = split_documents(lengths, length - 2)
        sizes = pieces.length + 2  # CLS and SEP
        plan = best_fit_decreasing(sizes, length)
        # Any rows but the packer's few emptier ones (taking the fullest would favour rows of one long document).
        fill = np.bincount(plan.row, weights=sizes, minlength=plan.rows)
        kept = generator.permutation(np.flatnonzero(fill >= 0.99 * length))[:rows]
        self.rows, self.max_length, self.vocab_size = rows, length, vocab_size
        self._ids = np.full((rows, length), PAD, np.int32)
        place = {int(row): index for index, row in enumerate(kept)}
        segments: list[list[int]] = [[] for _ in range(rows)]
        for row, size in zip(plan.row.tolist(), sizes.tolist(), strict=True):
            if row in place:
                segments[place[row]].append(size)
        self._segments = [np.array(parts, np.int32) for parts in segments]
        for index, parts in enumerate(self._segments):
            end = int(parts.sum())
            self._ids[index, :end] = generator.integers(FIRST, vocab_size, end)
            ends = np.cumsum(parts)
            self._ids[index, ends - 1] = SEP
            self._ids[index, ends - parts] = CLS

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Ids int32 [R, L] and each row's segment lengths."""
        return self._ids[indices], [self._segments[int(i)] for i in indices]
