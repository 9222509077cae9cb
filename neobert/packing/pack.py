"""One token shard -> one shard of packed rows (Arrow IPC stream, one record batch, uncompressed).

A token shard is the window that is planned: windows of tens of thousands of documents leave 1 to 4 positions in 10,000
unused, so no global packing is needed and shards are independent. Rows come out of the planner sorted by how many
segments they hold, so they are permuted by seed, or step time and gradients would drift over an epoch.
Every piece gets its own CLS and SEP. Memory: the window's tokens twice. Cost: at 1024 tokens a row about 600 million
tokens a second and core, of which a third is planning; at 128, where rows are mended, about half as many.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from neobert.errors import PipelineError
from neobert.packing.cut import plan_window
from neobert.packing.mixture import choose_documents
from neobert.packing.order import hash_stream
from neobert.packing.plan import Plan
from neobert.packing.shards import view

# What stands between pieces: offsets into the head of the token buffer, and how many ids.
HEAD = ("cls", "sep", "cls", "sep", "pad")  # the lists are: CLS | SEP CLS | SEP | PAD
_HEAD_LENGTHS = (1, 2, 1, 1)
_START, _BETWEEN, _END, _PAD, _FIRST_PIECE = range(5)


def read_tokens(path: str | Path, head: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
    """A token shard as flat ids [H + T], after the ids of ``head``, and the lengths of its documents, int64 [D]."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_stream(source)
        kind = reader.schema.field("input_ids").type.value_type.to_pandas_dtype()
        columns = [batch.column(0) for batch in reader]
        flat = np.concatenate([np.array(head, kind), *(view(column.flatten()) for column in columns)])
        return flat, _lengths(columns)


def read_lengths(path: str | Path) -> np.ndarray:
    """The lengths of a token shard's documents, int64 [D]; the pages of its ids are not touched."""
    with pa.memory_map(str(path)) as source:
        return _lengths([batch.column(0) for batch in pa.ipc.open_stream(source)])


def _lengths(columns: Sequence[pa.Array]) -> np.ndarray:
    lengths = [np.diff(view(column.offsets)) for column in columns]
    return np.concatenate([np.empty(0, np.int64), *lengths]).astype(np.int64)


def pack_shard(
    path: Path,
    shard: str,
    max_length: int,
    special_ids: dict[str, int],
    seed: int,
    mixture: list[tuple[int, int]],
) -> dict[str, Any]:
    """Write the rows of token shard ``shard`` to ``path``, with ids of the shard's own type.

    Args:
        max_length: tokens a row (L).
        special_ids: ``pad``, ``cls`` and ``sep``.
        seed: of the choice of documents and of the order of rows.
        mixture: (least tokens, limit of the hash) of each part, see ``mixture.Part``; empty takes every document once.

    Returns:
        rows, tokens (CLS and SEP included), documents, pieces, max_segments, lower_bound (of rows), and
        mixture_tokens by part.
    """
    flat, lengths = read_tokens(shard, [special_ids[role] for role in HEAD])
    chosen, by_part = choose_documents(lengths, mixture, seed)
    pieces, selected, plan = plan_window(lengths, max_length, chosen if mixture else None)
    ids, counts, segments = fill_rows(flat, pieces, selected, plan, max_length, seed)
    write_rows(path, ids, pa.from_numpy_dtype(flat.dtype), max_length, counts, segments)
    tokens = int(segments.sum())
    return {
        "rows": plan.rows,
        "tokens": tokens,
        "documents": len(chosen),
        "pieces": len(selected),
        "max_segments": int(counts.max(initial=0)),
        "lower_bound": -(-tokens // max_length),
        "mixture_tokens": by_part,
    }


def fill_rows(
    flat: np.ndarray, lengths: np.ndarray, selected: np.ndarray, plan: Plan, max_length: int, seed: int
) -> tuple[pa.Buffer, np.ndarray, np.ndarray]:
    """Lay the selected pieces into rows, in an order of rows permuted by ``seed``.

    A row is CLS, piece, SEP CLS, piece, ..., SEP, PAD, ...: a sequence of runs of ids that lie in ``flat`` already.
    Arrow's ``take`` of binary values copies runs at memory speed, so each run is one binary value (a Python loop of
    slice copies takes three times as long, a gather of single ids ten times).

    Args:
        flat: the ids of ``HEAD``, then all tokens of the shard.
        lengths: tokens of every piece of the shard, in order; together they are all its tokens.
        selected: pieces to lay out, as planned.

    Returns:
        ids [R x L] as a buffer, segments a row [R], and the lengths of segments in the order of rows, int32.
    """
    rows = plan.rows
    permuted = np.argsort(hash_stream(seed, 4, np.arange(rows)), kind="stable")
    new_number = np.empty(rows, np.int32)
    new_number[permuted] = np.arange(rows, dtype=np.int32)
    row = new_number[plan.row[plan.order]]
    # Pieces by row; within a row from long to short, as the planner placed them.
    by_row = np.argsort(row.astype(np.uint16) if rows <= 1 << 16 else row, kind="stable")  # 16 bits: a radix sort
    row, piece = row[by_row], selected[plan.order[by_row]]
    segments = (lengths[piece] + 2).astype(np.int32)
    counts = np.bincount(row, minlength=rows)
    padding = max_length - np.bincount(row, weights=segments, minlength=rows).astype(np.int64)
    runs = np.full(2 * len(piece) + rows + int(padding.sum()), _PAD, np.int64)
    place = 2 * np.arange(len(piece)) + row + (np.cumsum(padding) - padding)[row]
    last = np.cumsum(counts) - 1
    runs[place] = _BETWEEN
    runs[place[last - counts + 1]] = _START
    runs[place + 1] = _FIRST_PIECE + piece
    runs[place[last] + 2] = _END
    sizes = np.concatenate([_HEAD_LENGTHS, lengths]) * flat.itemsize
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(flat)]
    values = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(sizes), buffers)
    return values.take(pa.array(runs)).buffers()[2], counts, segments


def write_rows(
    path: Path, ids: pa.Buffer, kind: pa.DataType, max_length: int, counts: np.ndarray, segments: np.ndarray
) -> None:
    """Write rows as ``input_ids: FixedSizeList<kind>[L]`` and ``seq_lengths: List<int32>`` in one record batch."""
    if len(segments) >= 1 << 31:
        raise PipelineError(
            f"{path}: {len(segments)} segments overflow a list's offsets; lower corpus.documents_per_shard"
        )
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = pa.FixedSizeListArray.from_arrays(
        pa.Array.from_buffers(kind, len(counts) * max_length, [None, ids]), max_length
    )
    lengths = pa.ListArray.from_arrays(pa.array(offsets), pa.array(segments))
    batch = pa.record_batch([values, lengths], names=["input_ids", "seq_lengths"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
