"""Hard-negative mining: documents that a retriever ranks high for a query without being its positives.

Algorithm: within each group, the distinct documents are ranked for every query, by BM25 over token ids (so words are
split as the tokenizer splits them) or by cosine under an embedding model. Of the ranks ``range_min`` to ``range_max``
a pair takes the first documents that are not its query, no positive of its query or label anywhere in the data and,
with ``relative_margin``, do not score too near the positive, which would make them likely false negatives. Cost: a
query's scores are in memory one query at a time (BM25), or in blocks of ``SCORES`` bytes (a model, which encodes each
text once); BM25 takes about 0.7 s a thousand queries of 20 words over 50k documents of 100.
Source: names and the margin as sentence-transformers' ``mine_hard_negatives``; NV-Retriever (Moreira et al. 2024).
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from neobert.config.contrastive_data import MiningConfig
from neobert.errors import PipelineError
from neobert.progress import progress

BLOCK = 512
SCORES = 128 * 2**20
COLUMN = 16
"""Documents of a column in ``_best``."""
Tokens = list[np.ndarray]


class _Negatives(NamedTuple):
    """The three columns that mining extends, as lists a pair."""

    texts: list[list[str]]
    tokens: list[list[list[int]]]
    hashes: list[list[int]]


def mine(pairs: pl.DataFrame, config: MiningConfig, tokenizer_sha256: str) -> tuple[pl.DataFrame, int]:
    """``pairs`` (with tokens) with negatives added up to ``num_negatives`` each, and how many were added.

    Raises:
        PipelineError: the encoder cannot be read, or has another tokenizer.
    """
    columns = _Negatives(*(pairs[name].to_list() for name in ("negatives", "negative_ids", "hashes")))
    positives: dict[int, set[int]] = defaultdict(set)
    for (query, positive, *_), of_class in zip(columns.hashes, pairs["class"].to_list(), strict=True):
        positives[query].update((positive, query))  # the query may be another pair's document
        positives[of_class].add(positive)
    before = sum(map(len, columns.texts))
    groups = pairs.with_row_index("_row").group_by("source", "kind", maintain_order=True).agg("_row")
    for rows in groups["_row"].to_list():
        _mine_group(pairs[rows], rows, columns, positives, config, tokenizer_sha256)
    types = pairs.schema
    extended = (
        pl.Series("negatives", columns.texts, dtype=types["negatives"]),
        pl.Series("negative_ids", columns.tokens, dtype=types["negative_ids"]),
        pl.Series("hashes", columns.hashes, dtype=types["hashes"]),
    )
    return pairs.with_columns(extended), sum(map(len, columns.texts)) - before


def _mine_group(
    part: pl.DataFrame,
    rows: list[int],
    columns: _Negatives,
    positives: dict[int, set[int]],
    config: MiningConfig,
    tokenizer_sha256: str,
) -> None:
    """Extend ``columns`` for the pairs ``part``, whose places in the whole are ``rows``."""
    documents = part.select("corpus", "corpus_ids", hash=pl.col("hashes").list.get(1))
    documents = documents.unique("hash", keep="first", maintain_order=True)
    texts, tokens, hashes = documents["corpus"].to_list(), _arrays(documents["corpus_ids"]), documents["hash"].to_list()
    place = {value: i for i, value in enumerate(hashes)}
    chosen: dict[int, list[int]] = {}  # one list a document, however many pairs it is a negative of
    scores = _ranking(config, _arrays(part["query_ids"]), tokens, tokenizer_sha256)
    with progress("mine negatives", len(rows), "queries") as bar:
        for row, of_row, own in zip(rows, part["class"].to_list(), scores, strict=True):
            query, positive, *have = columns.hashes[row]
            of_query, of_class = positives[query], positives[of_row]
            for i in _candidates(own, place[positive], config):
                if len(have) >= config.num_negatives:
                    break
                if hashes[i] not in of_query and hashes[i] not in of_class and hashes[i] not in have:
                    have.append(hashes[i])
                    columns.texts[row].append(texts[i])
                    if i not in chosen:
                        chosen[i] = tokens[i].tolist()
                    columns.tokens[row].append(chosen[i])
                    columns.hashes[row].append(hashes[i])
            bar.advance(1)


def _arrays(column: pl.Series) -> Tokens:
    """Views of the column's memory, one a row."""
    lists = column.rechunk().to_arrow()
    values, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(offsets.tolist())]


def _candidates(scores: np.ndarray, positive: int, config: MiningConfig) -> list[int]:
    """Documents at the ranks to mine, in rank order (equal scores by number), that are not too near the positive."""
    top = _best(scores, config.range_max)[config.range_min :]
    if config.relative_margin is not None:
        top = top[scores[top] <= scores[positive] * (1 - config.relative_margin)]
    return top.tolist()


def _best(scores: np.ndarray, wanted: int) -> np.ndarray:
    """The documents of the ``wanted`` highest scores above 0, in rank order, equal scores by number.

    The documents are cut into columns: where ``wanted`` columns have a maximum of x or more, no document below x is
    wanted, and few are left to sort. ``np.argpartition`` takes longer, and which of equal scores it takes is the CPU's.
    """
    columns, least = len(scores) // COLUMN, 0.0
    if columns >= wanted:
        maxima = scores[: columns * COLUMN].reshape(COLUMN, columns).max(axis=0)
        least = np.partition(maxima, columns - wanted)[columns - wanted]
    near = np.flatnonzero(scores >= least if least > 0 else scores > 0)
    return near[np.argsort(-scores[near], kind="stable")[:wanted]]


def _ranking(config: MiningConfig, queries: Tokens, documents: Tokens, tokenizer_sha256: str) -> Iterator[np.ndarray]:
    """Scores [documents] of one query after the other."""
    if config.method == "bm25":
        return _bm25(queries, documents)
    return _encoder(Path(config.model or ""), queries, documents, tokenizer_sha256)


def _bm25(queries: Tokens, documents: Tokens) -> Iterator[np.ndarray]:
    from neobert.lexical import WordIndex

    names: dict[int, str] = {}  # one string a word, not one an occurrence

    def words(ids: np.ndarray) -> list[str]:
        return [names.setdefault(i, str(i)) for i in ids[1:-1].tolist()]  # without the special tokens at both ends

    index = WordIndex([words(ids) for ids in documents])
    return (index.scores(words(ids)) for ids in queries)


def _encoder(directory: Path, queries: Tokens, documents: Tokens, tokenizer_sha256: str) -> Iterator[np.ndarray]:
    import torch

    from neobert.model.batch import flatten
    from neobert.model.storage import load_embedding_model

    embedder, info = load_embedding_model(directory)
    if info.tokenizer_sha256 != tokenizer_sha256:
        raise PipelineError(
            f"contrastive_data.mine_negatives.model: {directory} has another tokenizer than data/tokenizer; "
            "mine with bm25, or with a model of this tokenizer"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    embedder = embedder.to(device).eval()

    @torch.no_grad()
    def embed(texts: Tokens) -> torch.Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = torch.empty(len(texts), info.model.hidden_size, device=device)
        for start in range(0, len(order), BLOCK // 4):
            chosen = order[start : start + BLOCK // 4]
            batch = flatten([texts[i] for i in chosen], info.pad_token_id).to(device)
            found[chosen] = torch.nn.functional.normalize(embedder(batch, len(chosen)), dim=-1)
        return found

    query_vectors, document_vectors = embed(queries), embed(documents)
    block = max(1, min(BLOCK, SCORES // (4 * len(documents))))
    for start in range(0, len(queries), block):
        yield from (query_vectors[start : start + block] @ document_vectors.T).cpu().numpy()
