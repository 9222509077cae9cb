"""Token ids and identity hashes of texts, each distinct text encoded once.

Pairs repeat texts (several queries of one document), so the distinct ones are encoded and joined back. The ids are
those that sentence-transformers will feed the exported model: prompt and text as one string, the tokenizer's own
special tokens, cut to a maximum length. Cost: the tokenizer's (2-3 MB of text a core and second).
"""

import hashlib
from pathlib import Path

import polars as pl
from tokenizers import Tokenizer

from neobert.config.contrastive_data import ContrastiveDataConfig
from neobert.contrastive.decontaminate import normalised
from neobert.errors import PipelineError
from neobert.progress import progress

CHUNK = 2048
MIN_TEXT_TOKENS = 8
"""What a prompt must leave of a length to the text: with fewer, different texts become the same input."""


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The fast tokenizer of a model or data directory.

    Raises:
        PipelineError: there is no readable tokenizer.json.
    """
    path = Path(directory) / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception
        raise PipelineError(f"{path}: is not a readable tokenizer ({error}); run the tokenizer stage") from error


def check_prompts(tokenizer: Tokenizer, config: ContrastiveDataConfig) -> None:
    """Prompt and text are cut as one string, so a long prompt would leave nothing of the text.

    Raises:
        PipelineError: a prompt leaves fewer than ``MIN_TEXT_TOKENS`` tokens of its maximum length.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for side, prompt, key, length in (
        ("query", config.prompts.query, "max_query_length", config.max_query_length),
        ("document", config.prompts.document, "max_document_length", config.max_document_length),
    ):
        taken = len(tokenizer.encode(prompt).ids)
        if prompt and length - taken < MIN_TEXT_TOKENS:
            raise PipelineError(
                f"contrastive_data.prompts.{side}: takes {taken} of the {length} tokens of contrastive_data.{key} "
                f"(special tokens included), and must leave at least {MIN_TEXT_TOKENS} to the text; shorten the prompt "
                f"or raise the length"
            )


def encode(tokenizer: Tokenizer, texts: pl.Series, prompt: str, max_length: int) -> pl.DataFrame:
    """Columns text, ids (specials included, at most ``max_length`` of int32), hash (uint64) of the distinct texts."""
    distinct = texts.unique(maintain_order=True)
    tokenizer.enable_truncation(max_length)
    tokenizer.no_padding()
    ids: list[pl.Series] = []
    with progress("tokenize pairs", distinct.len(), "texts") as bar:
        for start in range(0, distinct.len(), CHUNK):
            chunk = distinct[start : start + CHUNK]
            encoded = tokenizer.encode_batch_fast([prompt + text for text in chunk])
            ids.append(pl.Series("ids", [e.ids for e in encoded], dtype=pl.List(pl.Int32)))
            bar.advance(chunk.len())
    hashes = distinct.to_frame("text").select(normalised(pl.col("text")))["text"]
    return pl.DataFrame(
        {
            "text": distinct,
            "ids": pl.concat(ids) if ids else pl.Series("ids", [], dtype=pl.List(pl.Int32)),
            "hash": pl.Series([text_hash(text) for text in hashes], dtype=pl.UInt64),
        }
    )


def text_hash(text: str) -> int:
    """64 bits that identify a text, the same on every machine and version."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def add_tokens(
    frame: pl.DataFrame, tokenizer: Tokenizer, query_prompt: str, document_prompt: str, query_length: int, length: int
) -> pl.DataFrame:
    """Add token ids, hashes and classes to pairs.

    ``frame`` has query, corpus, negatives, source and label; new are query_ids, corpus_ids, negative_ids, hashes (of
    query, positive, negatives) and class: of the label within its source, or of the query where there is no label.
    """
    negatives = frame.select(pl.int_range(pl.len()).alias("_row"), text="negatives").explode("text").drop_nulls("text")
    queries = encode(tokenizer, frame["query"], query_prompt, query_length)
    documents = encode(tokenizer, pl.concat([frame["corpus"], negatives["text"]]), document_prompt, length)
    found = negatives.join(documents, on="text", how="left", maintain_order="left")
    by_row = found.group_by("_row", maintain_order=True).agg(negative_ids="ids", negative_hashes="hash")
    empty_ids = pl.lit([], dtype=pl.List(pl.List(pl.Int32)))
    empty_hashes = pl.lit([], dtype=pl.List(pl.UInt64))
    return (
        frame.with_row_index("_row")
        .with_columns(pl.col("_row").cast(pl.Int64))
        .join(_renamed(queries, "query"), on="query", how="left", maintain_order="left")
        .join(_renamed(documents, "corpus"), on="corpus", how="left", maintain_order="left")
        .join(by_row, on="_row", how="left", maintain_order="left")
        .with_columns(pl.col("negative_ids").fill_null(empty_ids))
        .with_columns(
            hashes=pl.concat_list("query_hash", "corpus_hash", pl.col("negative_hashes").fill_null(empty_hashes))
        )
        .join(_classes(frame), on=["source", "label"], how="left", maintain_order="left")
        .with_columns(pl.col("class").fill_null(pl.col("query_hash")))
        .drop("_row", "query_hash", "corpus_hash", "negative_hashes")
    )


def _classes(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns source, label, class (uint64) of the labels; two sources' equal labels are two classes."""
    labels = frame.select("source", "label").drop_nulls().unique(maintain_order=True)
    hashes = [text_hash(f"{source}\0{label}") for source, label in labels.rows()]
    return labels.with_columns(pl.Series("class", hashes, dtype=pl.UInt64))


def _renamed(table: pl.DataFrame, name: str) -> pl.DataFrame:
    return table.rename({"text": name, "ids": f"{name}_ids", "hash": f"{name}_hash"})
