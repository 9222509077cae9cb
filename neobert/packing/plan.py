"""Plan which pieces share a row, on the histogram of lengths: best-fit decreasing, and exact fill.

Best-fit decreasing takes pieces from long to short and puts each into the fullest row that still has room. Pieces of
one length are alike, and rows with one remaining capacity are alike, so whole ranges move at once: the cost is one
counting sort plus a step a (length, capacity) pair, about 0.1 s for a million pieces, where a heap or a segment tree
pays a logarithm a piece. ``exact_fill`` spares short pieces to close the slivers that best fit leaves; on windows of
30,000 documents it reached the lower bound itself at 1024 tokens a row, where best fit needs 4 rows in 10,000 more.
Source: Johnson 1973 (BFD).
"""

import bisect
from typing import NamedTuple

import numpy as np

from neobert.errors import PipelineError

SHORTEST = (20, 60)  # of so many pieces one is shorter than those that slivers are kept open for
ENOUGH = 1.0001  # times the lower bound: not worth another try


class Plan(NamedTuple):
    row: np.ndarray  # int32 [P], the row of each piece
    order: np.ndarray  # int64 [P], pieces from long to short
    rows: int


def plan_rows(lengths: np.ndarray, capacity: int) -> Plan:
    """Assign pieces to rows: by exact fill where that comes near the lower bound, else by the best of all planners.

    Args:
        lengths: int [P], 1 to ``capacity`` each.
        capacity: tokens a row holds.

    Raises:
        PipelineError: a length is out of bounds.
    """
    enough = ENOUGH * rows_lower_bound(lengths, capacity)
    plans = []
    for shortest in SHORTEST:
        plans.append(exact_fill(lengths, capacity, shortest))
        if plans[-1].rows <= enough:
            return plans[-1]
    plans.append(best_fit_decreasing(lengths, capacity))
    return min(plans, key=lambda plan: plan.rows)


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> Plan:
    """Assign pieces to the rows that textbook best-fit decreasing gives; arguments and errors as ``plan_rows``."""
    state = _Filling(lengths, capacity)
    for length in range(capacity, 0, -1):
        while state.counts[length]:
            best = bisect.bisect_left(state.capacities, length)
            room = state.capacities[best] if best < len(state.capacities) else capacity
            # A row takes all it can before the next best row is looked at: it stays the fullest that fits.
            state.place(length, room, room // length, new=best == len(state.capacities))
    return state.plan()


def exact_fill(lengths: np.ndarray, capacity: int, shortest: int = SHORTEST[0]) -> Plan:
    """Assign pieces so that small ones fill rows to the last token; arguments and errors as ``plan_rows``.

    Best fit leaves slivers shorter than any piece. Here a long piece goes where it fits exactly or leaves room for a
    small one, and the small ones (up to a sixteenth of a row, or four times the smallest) are then chosen by their
    sums: one, or a pair, that makes up the rest. Better than best fit where small pieces abound, worse where not.

    Args:
        shortest: the room left is as long as the piece that one in so many pieces is shorter than. (Not the very
            shortest: there must be enough to go round.)
    """
    state = _Filling(lengths, capacity)
    if not len(state.order):
        return state.plan()
    smallest = int(lengths[state.order[-len(lengths) // shortest]])
    small = min(max(4 * smallest, capacity // 16), capacity // 2)
    for length in range(capacity, small, -1):
        while state.counts[length]:
            if length in state.free:
                state.place(length, length, 1)
                continue
            best = bisect.bisect_left(state.capacities, length + smallest)
            new = best == len(state.capacities)
            room = capacity if new else state.capacities[best]
            each = room // length if room % length == 0 else max((room - smallest) // length, 1)
            state.place(length, room, each, new)
    _fill_small(state, small, smallest)
    return state.plan()


def longest_first(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Pieces from long to short (of at most ``capacity``), those of one length in order; int64 [P]."""
    narrow = np.int16 if capacity < 1 << 15 else np.int32
    return np.argsort(np.negative(np.asarray(lengths).astype(narrow)), kind="stable")  # a radix sort for 16 bits


class _Filling:
    """Rows while they are filled: ranges of alike rows by the capacity that they have left."""

    def __init__(self, lengths: np.ndarray, capacity: int) -> None:
        lengths = np.asarray(lengths)
        if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= capacity):
            raise PipelineError(
                f"a piece of {lengths.min()} to {lengths.max()} tokens does not fit a row of {capacity}"
            )
        self.order = longest_first(lengths, capacity)
        counts = np.bincount(lengths, minlength=capacity + 1)
        self.next = (len(lengths) - np.cumsum(counts)).tolist()  # in `order`: the next piece of each length
        self.counts = counts.tolist()  # pieces of each length still to be placed
        self.capacity, self.rows = capacity, 0
        self.free: dict[int, list[tuple[int, int]]] = {}  # capacity left -> ranges (first row, how many)
        self.capacities: list[int] = []  # the keys of `free`, sorted
        self.placed = np.empty(len(lengths), np.int32)  # the row of each piece, in the order of `order`

    def place(self, length: int, room: int, each: int, new: bool = False) -> None:
        """Put up to ``each`` pieces of ``length`` into every row of one range with ``room`` left (or of new rows)."""
        each = min(each, self.counts[length])
        wanted = self.counts[length] // each
        if new:
            first, available = self.rows, wanted
            self.rows += wanted
        else:
            first, available = self.free[room].pop()
            if not self.free[room]:
                del self.free[room], self.capacities[bisect.bisect_left(self.capacities, room)]
        number = min(available, wanted)
        self.put(length, each, np.arange(first, first + number, dtype=np.int32))
        self.give_back(room - each * length, first, number)
        self.give_back(room, first + number, available - number)

    def put(self, length: int, each: int, rows: np.ndarray) -> None:
        """Put ``each`` pieces of ``length`` into each of ``rows``."""
        start, pieces = self.next[length], each * len(rows)
        self.placed[start : start + pieces] = np.repeat(rows, each) if each > 1 else rows
        self.next[length] += pieces
        self.counts[length] -= pieces

    def give_back(self, left: int, first: int, number: int) -> None:
        """Say that a range of rows has ``left`` tokens left."""
        if left == 0 or number == 0:
            return
        if left not in self.free:
            bisect.insort(self.capacities, left)
            self.free[left] = []
        self.free[left].append((first, number))

    def plan(self) -> Plan:
        row = np.empty(len(self.order), np.int32)
        row[self.order] = self.placed
        return Plan(row, self.order, self.rows)


def _fill_small(state: _Filling, small: int, smallest: int) -> None:
    """Place the pieces of at most ``small`` tokens: into the rows there are, from roomy to full, then into new ones."""
    for room in list(reversed(state.capacities)):
        rows = np.concatenate([np.arange(first, first + number, dtype=np.int32) for first, number in state.free[room]])
        while len(rows):
            used = _apply(state, rows, _pattern(state.counts, room, small))
            if not used:
                break
            rows = rows[used:]
    while pattern := _pattern(state.counts, state.capacity, small):
        number = max(min(state.counts[length] // times for length, times in pattern.items()), 1)
        rows = np.arange(state.rows, state.rows + number, dtype=np.int32)
        state.rows += _apply(state, rows, pattern)


def _apply(state: _Filling, rows: np.ndarray, pattern: dict[int, int]) -> int:
    """Put ``pattern`` (length -> times) into as many of ``rows`` as its pieces last for, and say into how many."""
    if not pattern:
        return 0
    number = min(len(rows), *(state.counts[length] // times for length, times in pattern.items()))
    for length, times in pattern.items():
        state.put(length, times, rows[:number])
    return number


def _pattern(counts: list[int], room: int, small: int) -> dict[int, int]:
    """Small pieces (length -> times) that fill ``room``: exactly, if one or a pair makes up what large ones leave."""
    pattern: dict[int, int] = {}
    left, length = room, small
    while left:
        if left <= 2 * small and (ends := exact_sum(counts, pattern, left, small)):
            for end in ends:
                pattern[end] = pattern.get(end, 0) + 1
            break
        length = min(length, left)
        while length and counts[length] <= pattern.get(length, 0):
            length -= 1
        if not length:
            break
        pattern[length] = pattern.get(length, 0) + 1
        left -= length
    return pattern


def exact_sum(counts: list[int], pattern: dict[int, int], left: int, small: int) -> tuple[int, ...]:
    """One or two pieces up to ``small`` long, ``left`` together, besides ``pattern``; none where there are none."""
    if left <= small and counts[left] > pattern.get(left, 0):
        return (left,)
    for a in range(min(left - 1, small), (left - 1) // 2, -1):
        b = left - a
        if counts[a] and counts[b]:  # most are refused here
            spare = counts[a] - pattern.get(a, 0)
            if (spare > 1) if a == b else (spare > 0 and counts[b] > pattern.get(b, 0)):
                return (a, b)
    return ()


def rows_lower_bound(lengths: np.ndarray, capacity: int) -> int:
    """Fewest rows that any packing needs: the tokens, or the pieces longer than half a row if those are more."""
    lengths = np.asarray(lengths, dtype=np.int64)
    return max(-(-int(lengths.sum()) // capacity), int((2 * lengths > capacity).sum()))
