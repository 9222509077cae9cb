"""Weighted sources: exact shares, pure in the sample's number, every row of a source once an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert.errors import PipelineError
from neobert.packing.sampling import CYCLE, WeightedOrder

SOURCES = {"a": [(0, 100), (400, 450)], "b": [(100, 390)], "c": [(390, 400)]}


def source_of(rows):
    return np.where((rows < 100) | (rows >= 400), 0, np.where(rows < 390, 1, 2))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 1000), min_size=3, max_size=3).filter(any), st.integers(0, 50))
def test_shares_hold_in_every_cycle(weights, cycle):
    probabilities = [w / sum(weights) for w in weights]
    order = WeightedOrder(SOURCES, "abc", probabilities, 1)
    rows, _ = order(cycle * CYCLE, CYCLE)
    counts = np.bincount(source_of(rows), minlength=3)
    assert np.abs(counts - np.array(probabilities) * CYCLE).max() <= 3


def test_every_row_of_a_source_once_an_epoch():
    order = WeightedOrder(SOURCES, "abc", [0.5, 0.4, 0.1], 1)
    rows, epochs = order(0, 20 * CYCLE)
    for k, size in enumerate((150, 290, 10)):
        mine, when = rows[source_of(rows) == k], epochs[source_of(rows) == k]
        for epoch in range(3):
            assert len(mine[when == epoch]) == len(np.unique(mine[when == epoch])) == size


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 30_000), st.integers(1, 20_000))
def test_seeking_gives_what_reading_gives(start, count):
    order = WeightedOrder(SOURCES, "abc", [0.2, 0.7, 0.1], 3)
    whole = order(0, start + count)
    part = order(start, count)
    assert (whole[0][start:] == part[0]).all()
    assert (whole[1][start:] == part[1]).all()


def test_epochs_are_reported():
    order = WeightedOrder(SOURCES, "abc", [0.5, 0.4, 0.1], 1)
    assert order.epochs(2 * CYCLE) == pytest.approx(
        {"a": CYCLE / 150, "b": 0.8 * CYCLE / 290, "c": 0.2 * CYCLE / 10}, rel=0.01
    )


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [([0.5, 0.5], "2 probabilities for 3 sources"), ([0.5, 0.6, -0.1], "positive"), ([0.5, 0.4, 0.2], "sum to 1")],
)
def test_probabilities_are_checked(probabilities, message):
    with pytest.raises(PipelineError, match=rf"dataset\.sampling_probs.*{message}"):
        WeightedOrder(SOURCES, "abc", probabilities, 1)


def test_a_source_without_rows_cannot_be_sampled():
    with pytest.raises(PipelineError, match=r"'d' has probability 0\.5 but no row"):
        WeightedOrder(SOURCES, "ad", [0.5, 0.5], 1)
    rows, _ = WeightedOrder(SOURCES, "ad", [1.0, 0.0], 1)(0, 1000)
    assert set(source_of(rows)) == {0}
