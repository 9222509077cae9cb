"""BM25 scores of texts given as words: the baseline without training, and what hard negatives are mined with.

Lucene's BM25 (k1 = 1.5, b = 0.75) by bm25s (https://github.com/xhluca/bm25s). Cost: one sparse matrix product a query.
"""

import os
from collections.abc import Iterable

import numpy as np

# Where JAX is installed, importing bm25s starts it, and on a GPU JAX takes three quarters of the memory for itself.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
import bm25s

VERSION: str = bm25s.__version__


class WordIndex:
    """Documents, each a list of words, to be scored for a query of words."""

    def __init__(self, documents: list[list[str]]) -> None:
        self._count = len(documents)
        self._engine = bm25s.BM25()
        self._engine.index(documents, show_progress=False)

    def scores(self, query: Iterable[str]) -> np.ndarray:
        """(documents,) float32: the score of each document; 0 where it shares no word with the query."""
        known = [word for word in query if word in self._engine.vocab_dict]
        # bm25s refuses an empty query.
        return self._engine.get_scores(known) if known else np.zeros(self._count, np.float32)
