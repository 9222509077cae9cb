"""The plan equals textbook best-fit decreasing, and is near the lower bound on large windows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert.errors import PipelineError
from neobert.packing.plan import best_fit_decreasing, exact_fill, plan_rows, rows_lower_bound


class SegmentTree:
    """Best fit by a segment tree over capacities: leaf c counts the open rows with c tokens left."""

    def __init__(self, capacity: int) -> None:
        self.size = 1 << capacity.bit_length()
        self.counts = np.zeros(2 * self.size, int)

    def add(self, left: int, number: int) -> None:
        node = left + self.size
        while node:
            self.counts[node] += number
            node //= 2

    def at_least(self, need: int) -> int | None:
        """The smallest capacity >= need of an open row."""
        node = need + self.size
        if self.counts[node]:
            return need
        while node > 1:
            if node % 2 == 0 and self.counts[node + 1]:
                node += 1
                while node < self.size:
                    node = 2 * node if self.counts[2 * node] else 2 * node + 1
                return node - self.size
            node //= 2
        return None


def textbook_rows(lengths: list[int], capacity: int) -> int:
    tree, rows = SegmentTree(capacity), 0
    for length in sorted(lengths, reverse=True):
        best = tree.at_least(length)
        if best is None:
            rows, best = rows + 1, capacity
        else:
            tree.add(best, -1)
        if best > length:
            tree.add(best - length, 1)
    return rows


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 60).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=300))))
def test_plan_is_best_fit_decreasing(case):
    capacity, lengths = case
    pieces = np.array(lengths, np.int64)
    rows = {}
    for planner in (best_fit_decreasing, exact_fill, plan_rows):
        plan = planner(pieces, capacity)
        used = np.bincount(plan.row, weights=lengths, minlength=plan.rows) if lengths else np.zeros(0)
        assert len(used) == plan.rows
        assert (used <= capacity).all()
        assert (used > 0).all()
        assert sorted(plan.order.tolist()) == list(range(len(lengths)))
        assert plan.rows >= rows_lower_bound(pieces, capacity)
        rows[planner] = plan.rows
    assert rows[best_fit_decreasing] == textbook_rows(lengths, capacity)
    assert rows[plan_rows] <= rows[best_fit_decreasing]


def test_large_windows_are_near_the_bound():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.2, 1.0, 65_536).astype(np.int64), 3, 1024)
    assert plan_rows(lengths, 1024).rows <= 1.0001 * rows_lower_bound(lengths, 1024)
    plan = best_fit_decreasing(lengths, 1024)
    assert plan.rows == textbook_rows(lengths.tolist(), 1024)


def test_lengths_out_of_bounds_are_refused():
    for bad in (0, 11):
        with pytest.raises(PipelineError, match="does not fit"):
            best_fit_decreasing(np.array([5, bad]), 10)
