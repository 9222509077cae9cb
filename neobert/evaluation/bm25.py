"""BM25 as the baseline without training, over words with identifiers split.

Words: camel case and snake case are split and lower-cased (``readNextLine`` and ``read_next_line`` both give read,
next, line), punctuation is dropped, no stop words, no stemming, so that nothing assumes a language.
"""

import re
from typing import Any

import numpy as np
from mteb.models.model_meta import ModelMeta

from neobert.io import fingerprint
from neobert.lexical import VERSION, WordIndex

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Lower-cased words of ``text``, identifiers split at case changes and underscores."""
    return _WORD.findall(_CAMEL.sub(" ", text).lower())


class BM25Search:
    """MTEB's search protocol (``index``, ``search``) over BM25, for retrieval and reranking tasks."""

    def __init__(self) -> None:
        revision = fingerprint(["bm25s", VERSION, _CAMEL.pattern, _WORD.pattern])
        self.mteb_model_meta = ModelMeta.create_empty({"name": "neobert/bm25", "revision": revision})

    def index(self, corpus: Any, **_: Any) -> None:
        """Index the documents (title and text)."""
        self._ids = list(corpus["id"])
        texts = [f"{title} {text}" for title, text in zip(corpus["title"], corpus["text"], strict=True)]
        self._index = WordIndex([words(text) for text in texts])

    def search(self, queries: Any, *, top_k: int, top_ranked: Any = None, **_: Any) -> dict[str, dict[str, float]]:
        """Scores of the best ``top_k`` documents that share a word with the query (of its candidates, if given)."""
        number = {identifier: i for i, identifier in enumerate(self._ids)}
        found = {}
        for identifier, text in zip(queries["id"], queries["text"], strict=True):
            scores = self._index.scores(words(text))
            if top_ranked is not None:
                candidates = np.array([number[d] for d in top_ranked[identifier]])
            else:
                candidates = np.flatnonzero(scores > 0)
            best = candidates[np.argsort(-scores[candidates], kind="stable")[:top_k]]
            found[identifier] = {self._ids[i]: float(scores[i]) for i in best}
        return found
