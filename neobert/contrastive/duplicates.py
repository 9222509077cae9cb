"""Duplicate pairs: the same query and positive again, in one source or in several.

The first of them stays, with the hard negatives of all of them, so that neither the order of rows nor the order of
sources decides what is kept of a pair. Cost: one hash join over the pairs; only duplicates' negatives are looked at.
"""

import polars as pl

from neobert.contrastive.decontaminate import normalised


def merge(pairs: pl.DataFrame) -> pl.DataFrame:
    """One pair for each query and positive (normalised): the first, with the negatives of all of them, each once.

    ``pairs`` may have tokens (``neobert.contrastive.tokens.add_tokens``): negative_ids, and hashes, of which the first
    two are the query's and the positive's, then follow the negatives.
    """
    row = pl.int_range(pl.len()).alias("_row")
    texts = pairs.select(row, query=normalised(pl.col("query")), corpus=normalised(pl.col("corpus")))
    firsts = texts.select("_row", first=pl.col("_row").first().over("query", "corpus"))
    repeated = firsts.filter(pl.col("first") != pl.col("_row"))["first"].unique()
    if not repeated.len():
        return pairs
    columns = [name for name in ("negatives", "negative_ids", "hashes") if name in pairs.columns]
    tokens = "hashes" in columns
    of_texts = pl.col("hashes").list.head(2)
    tails = pairs.with_columns(pl.col("hashes").list.slice(2)) if tokens else pairs
    negatives = (
        tails.select(pl.col(columns), _row=firsts["first"])
        .filter(pl.col("_row").is_in(repeated.implode()) & (pl.col("negatives").list.len() > 0))
        .explode(columns)
        .unique(["_row", "negatives"], keep="first", maintain_order=True)
        .group_by("_row", maintain_order=True)
        .agg(pl.col(columns).name.prefix("_"))
    )
    kept = pairs.with_columns(row).filter(firsts["first"] == firsts["_row"])
    joined = kept.join(negatives, on="_row", how="left", maintain_order="left")
    if tokens:
        joined = joined.with_columns(_hashes=pl.concat_list(of_texts, "_hashes"))
    return joined.with_columns(pl.coalesce(f"_{name}", name).alias(name) for name in columns).select(pairs.columns)
