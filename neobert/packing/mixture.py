"""Choose documents so that given shares of the tokens come from documents of given lengths.

The longer-context stage of NeoBERT trains on 20% of all documents, 40% of those of 1024 tokens and more, 40% of those
of 2048 and more. The parts take as many tokens as they can without repeating a document within a part; a long document
may be in several parts, as in the paper's sampling.

Shares hold over the whole corpus, whatever lies in which shard: a part takes the documents whose hash is below a
limit, and the limits are found once, from the lengths of all shards. So shards stay independent of each other.
Cost: some 30 ns a document and part over all shards, on one core; memory: one shard's lengths, 512 KiB a part.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from neobert.errors import PipelineError
from neobert.packing.order import hash_stream

BITS = 16  # of the hash that the limits tell apart: a share is met to 1/65536 of its part, or to a document


class Part(NamedTuple):
    """One part of a mixture over all shards."""

    least: int  # tokens that its documents have at least, CLS and SEP included
    share: float  # of the packed tokens, as asked
    available: int  # tokens of its documents, without CLS and SEP
    limit: int  # it takes the documents whose hash is below, of 2**BITS


def measure(mixture: list[tuple[int, float]], shards: Iterable[tuple[np.ndarray, int]]) -> list[Part]:
    """What each part of the mixture may take of the documents of all shards.

    Args:
        mixture: (least tokens with CLS and SEP, share).
        shards: for each shard the tokens of its documents without CLS and SEP, int64 [D], and its seed.

    Raises:
        PipelineError: a part of which the shards have no document.
    """
    tokens = np.zeros((len(mixture), 1 << BITS), np.int64)  # by the hash of their documents
    for lengths, seed in shards:
        for number, (least, _) in enumerate(mixture):
            documents = _eligible(lengths, least)
            hashes = _hashes(documents, number, seed)
            tokens[number] += np.bincount(hashes, weights=lengths[documents], minlength=1 << BITS).astype(np.int64)
    available = tokens.sum(axis=1).tolist()
    empty = [least for (least, _), there in zip(mixture, available, strict=True) if not there]
    if empty:
        raise PipelineError(
            f"packing.length_mixture asks for documents of at least {', '.join(map(str, empty))} tokens, of which the "
            "corpus has none; lower min_tokens, or remove that part and let the shares of the others sum to 1"
        )
    budget = min((there / share for there, (_, share) in zip(available, mixture, strict=True)), default=0.0)
    return [
        Part(least, share, there, _limit(counts, share * budget))
        for (least, share), there, counts in zip(mixture, available, tokens, strict=True)
    ]


def _limit(tokens: np.ndarray, budget: float) -> int:
    """The hash below which documents hold the tokens nearest to ``budget``, and one document at least."""
    total = np.cumsum(tokens)
    return int(np.argmin(np.where(total > 0, abs(total - budget), np.inf))) + 1


def choose_documents(
    lengths: np.ndarray, mixture: list[tuple[int, int]], seed: int
) -> tuple[np.ndarray, dict[str, int]]:
    """Documents of a shard to pack, with repeats, and the tokens that each part of the mixture gets of it.

    Args:
        lengths: int64 [D], tokens a document without CLS and SEP.
        mixture: ``least`` and ``limit`` of each part; empty: every document once.
        seed: of the shard, as for ``measure``.
    """
    if not mixture:
        return np.arange(len(lengths)), {}
    chosen: list[np.ndarray] = []
    tokens: dict[str, int] = {}
    for number, (least, limit) in enumerate(mixture):
        documents = _eligible(lengths, least)
        taken = documents[_hashes(documents, number, seed) < limit]
        chosen.append(taken)
        tokens[str(least)] = tokens.get(str(least), 0) + int(lengths[taken].sum())
    return np.sort(np.concatenate(chosen)), tokens


def _eligible(lengths: np.ndarray, least: int) -> np.ndarray:
    return np.flatnonzero(lengths + 2 >= least)


def _hashes(documents: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Of a shard's documents, for part ``number``: int64 [D] below 2**BITS."""
    return (hash_stream(seed, 5, number, documents) >> np.uint64(64 - BITS)).astype(np.int64)
