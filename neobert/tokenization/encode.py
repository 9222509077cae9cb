"""Texts -> token ids, without special tokens, exactly as the tokenizer itself would give them."""

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer


class RustEncoder:
    """The tokenizer as it is. Literal special tokens in a text are ordinary text: ``[MASK]`` is four pieces or so."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts in one flat int32 array, and the number of ids of each text, int64."""
        encodings = self.tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
        lengths = np.fromiter((len(e) for e in encodings), np.int64, len(encodings))
        flat = np.empty(int(lengths.sum()), np.int32)
        position = 0
        for encoding, length in zip(encodings, lengths.tolist(), strict=True):
            flat[position : position + length] = encoding.ids
            position += length
        return flat, lengths
