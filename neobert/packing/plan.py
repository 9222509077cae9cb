"""Plan which pieces share a row: best-fit decreasing on the histogram of lengths.

Best-fit decreasing takes pieces from long to short and puts each into the fullest row that still has room. Pieces of
one length are alike, and rows with one remaining capacity are alike, so whole ranges move at once: the cost is one
counting sort plus a step a (length, capacity) pair, about 0.05 s for a million pieces, where a heap or a segment tree
pays a logarithm a piece. Documents longer than a row are cut into pieces beforehand: nothing is truncated,
no tail is tiny. Source: Johnson 1973 (BFD); Ding et al. 2024, "Fewer Truncations Improve Language
Modeling" (packing without truncation).
"""

import bisect
from typing import NamedTuple

import numpy as np

from neobert.errors import PipelineError


class Pieces(NamedTuple):
    """Parts of documents, in the order of the documents; [P] each."""

    document: np.ndarray  # int64, index of the document
    start: np.ndarray  # int64, first token inside the document
    length: np.ndarray  # int64, tokens, without CLS and SEP


def split_documents(lengths: np.ndarray, capacity: int) -> Pieces:
    """Cut documents of ``lengths`` tokens into the fewest pieces of at most ``capacity``, all whole but the last.

    Where the last would be shorter than a sixteenth of a row, the last two share their tokens equally. (All pieces of
    equal length would be longer than half a row, no two of which fit together: rows came out 0.89 full at 128.)
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    count = -(-lengths // capacity)  # an empty document has no piece
    document = np.repeat(np.arange(len(lengths)), count)
    first = np.cumsum(count) - count
    ordinal = np.arange(len(document)) - first[document]
    start = ordinal * capacity
    length = np.minimum(capacity, lengths[document] - start)
    last = first + count - 1
    tail = lengths - (count - 1) * capacity
    short = last[(count >= 2) & (tail < capacity // 16)]
    both = length[short] + length[short - 1]
    length[short], length[short - 1] = both // 2, both - both // 2
    start[short] = start[short - 1] + length[short - 1]
    return Pieces(document, start, length)


class Plan(NamedTuple):
    row: np.ndarray  # int32 [P], the row of each piece
    order: np.ndarray  # int64 [P], pieces from long to short, the order in which rows are filled
    rows: int


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> Plan:
    """Assign pieces to the rows that exact best-fit decreasing gives.

    Args:
        lengths: int [P], 1 to ``capacity`` each.
        capacity: tokens a row holds.

    Raises:
        PipelineError: a length is out of bounds.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= capacity):
        raise PipelineError(f"a piece of {lengths.min()} to {lengths.max()} tokens does not fit a row of {capacity}")
    narrow = np.int16 if capacity < 1 << 15 else np.int32
    order = np.argsort(np.negative(lengths.astype(narrow)), kind="stable")  # a radix sort for 16 bits
    counts = np.bincount(lengths, minlength=capacity + 1).tolist()
    placed = np.empty(len(lengths), np.int32)  # rows in the order of `order`
    free: dict[int, list[tuple[int, int]]] = {}  # capacity left -> ranges (first row, how many rows)
    capacities: list[int] = []  # the keys of `free`, sorted
    rows = position = 0

    def give_back(left: int, first: int, number: int) -> None:
        if left == 0 or number == 0:
            return
        if left not in free:
            bisect.insort(capacities, left)
            free[left] = []
        free[left].append((first, number))

    for length in range(capacity, 0, -1):
        waiting = counts[length]
        while waiting:
            best = bisect.bisect_left(capacities, length)
            opened = best == len(capacities)
            if opened:
                room = capacity
                first, available = rows, waiting
            else:
                room = capacities[best]
                first, available = free[room].pop()
                if not free[room]:
                    del free[room], capacities[best]
            # A row takes all it can before the next best row is looked at: it stays the fullest that fits.
            each = min(room // length, waiting)
            number = min(available, waiting // each)
            pieces = each * number
            placed[position : position + pieces] = np.repeat(np.arange(first, first + number, dtype=np.int32), each)
            position += pieces
            waiting -= pieces
            give_back(room - each * length, first, number)
            if opened:
                rows += number
            else:
                give_back(room, first + number, available - number)
    row = np.empty(len(lengths), np.int32)
    row[order] = placed
    return Plan(row, order, rows)


def rows_lower_bound(lengths: np.ndarray, capacity: int) -> int:
    """Fewest rows that any packing needs: the tokens, or the pieces longer than half a row if those are more."""
    lengths = np.asarray(lengths, dtype=np.int64)
    return max(-(-int(lengths.sum()) // capacity), int((2 * lengths > capacity).sum()))
