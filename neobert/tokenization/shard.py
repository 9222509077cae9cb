"""One corpus shard (Parquet) -> one token shard (Arrow IPC stream): a list of ids a document, no special tokens.

Pure: the bytes written depend on the shard, the tokenizer and this code. Memory: one batch of ``BATCH_BYTES`` of text,
its ids and the memo. Documents that yield no token are left out.
"""

import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neobert.io import sha256_file
from neobert.tokenization.encode import Encoder, make_encoder
from neobert.tokenization.tokenizer import open_tokenizer

BATCH_BYTES = 4 << 20
_ONE_AT_A_TIME = threading.Lock()  # the memo is one process's, and a dask worker may have several threads


def token_type(vocab_size: int) -> pa.DataType:
    """uint16 where every id fits, else int32."""
    return pa.uint16() if vocab_size <= 1 << 16 else pa.int32()


@lru_cache(maxsize=1)
def _encoder(tokenizer: str, _sha256: str) -> tuple[Encoder, int]:
    """One encoder a process: what its memo learned from one shard serves the next."""
    # Arrow's default pool keeps what batches free and grows by a tenth over a gigabyte; the system's stays flat.
    pa.set_memory_pool(pa.system_memory_pool())
    rust, info = open_tokenizer(tokenizer)
    return make_encoder(rust), info.vocab_size


def tokenize_shard(path: Path, shard: str, tokenizer: str) -> dict[str, Any]:
    """Write the tokens of the Parquet file ``shard`` to ``path``.

    Args:
        tokenizer: folder of the tokenizer.

    Returns:
        documents and tokens written, and texts without a token.
    """
    encoder, vocab_size = _encoder(tokenizer, sha256_file(Path(tokenizer) / "tokenizer.json"))
    kind = token_type(vocab_size)
    schema = pa.schema([("input_ids", pa.list_(kind))])
    documents = tokens = empty = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for texts in text_batches(shard):
            with _ONE_AT_A_TIME:
                flat, lengths = encoder.encode(texts)
            empty += int((lengths == 0).sum())
            lengths = lengths[lengths > 0]
            if not len(lengths):
                continue
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            ids = pa.array(flat.astype(kind.to_pandas_dtype(), copy=False))
            writer.write_batch(pa.record_batch([pa.ListArray.from_arrays(pa.array(offsets), ids)], schema=schema))
            documents += len(lengths)
            tokens += len(flat)
    return {"documents": documents, "tokens": tokens, "without_tokens": empty}


def text_batches(shard: str | Path) -> Iterator[pa.StringArray]:
    """The texts of a corpus shard in batches of about ``BATCH_BYTES``."""
    with pq.ParquetFile(shard) as file:
        for group in range(file.num_row_groups):
            column = file.read_row_group(group, columns=["text"], use_threads=False).column("text")
            for chunk in column.chunks:
                step = max(1, len(chunk) * BATCH_BYTES // max(chunk.nbytes, 1))
                for start in range(0, len(chunk), step):
                    yield chunk.slice(start, step)
