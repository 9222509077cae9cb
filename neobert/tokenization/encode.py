"""Texts -> token ids, without special tokens, exactly as the tokenizer itself gives them.

``make_encoder`` puts the word memo (``neobert.tokenization.memo``) in front of the Rust tokenizer where its pipeline
allows that, and takes the Rust tokenizer alone where it does not. Literal special tokens in a text (``[MASK]``) are
ordinary text to both, or documents about tokenizers would inject them.
"""

import logging
from array import array
from typing import Protocol

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

log = logging.getLogger(__name__)


class Encoder(Protocol):
    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts in one flat int32 array, and the number of ids of each text, int64 [N]."""
        ...


class RustEncoder:
    """The tokenizer as it is."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """See ``Encoder``."""
        return self.encode_list(texts.to_pylist())

    def encode_list(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The same for Python strings."""
        flat = array("i")  # from a list three times faster than numpy is
        lengths = np.empty(len(texts), np.int64)
        for position, encoding in enumerate(self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)):
            ids = encoding.ids
            lengths[position] = len(ids)
            flat.fromlist(ids)
        return np.frombuffer(flat, np.int32) if flat else np.empty(0, np.int32), lengths


def make_encoder(tokenizer: Tokenizer) -> Encoder:
    """The fastest exact encoder for ``tokenizer``; the log says which and why."""
    from neobert.tokenization.memo import MemoEncoder, memo_rules

    rules, reason = memo_rules(tokenizer)
    if rules is None:
        log.info("the word memo does not hold for this tokenizer (%s): the Rust tokenizer encodes every word", reason)
        return RustEncoder(tokenizer)
    return MemoEncoder(RustEncoder(tokenizer), rules)
