"""The order of rows: a permutation every epoch, pure in samples_seen, mixed, and the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert.packing.order import hash_stream, permute, row_order


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20_000), st.integers(0, 2**62), st.integers(0, 5))
def test_every_epoch_visits_every_row_once(rows, seed, epoch):
    order, epochs = row_order(epoch * rows, rows, rows, seed)
    assert (np.sort(order) == np.arange(rows)).all()
    assert (epochs == epoch).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3000), st.integers(0, 10_000), st.integers(1, 500))
def test_seeking_gives_what_reading_gives(rows, start, count):
    whole, epochs = row_order(0, start + count, rows, 3)
    part, part_epochs = row_order(start, count, rows, 3)
    assert (whole[start:] == part).all()
    assert (epochs[start:] == part_epochs).all()


def test_orders_differ_by_seed_and_epoch_and_are_mixed():
    rows = 50_000
    first, _ = row_order(0, rows, rows, 1)
    second, _ = row_order(rows, rows, rows, 1)
    other, _ = row_order(0, rows, rows, 2)
    for a, b in ((first, second), (first, other), (first, np.arange(rows))):
        assert (a == b).mean() < 0.001
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.2
    # A window of 8192 rows holds 64 blocks from all over: neighbours in the order are mostly far apart.
    assert np.median(np.abs(np.diff(first))) > rows / 20


def test_permutation_is_close_to_uniform():
    """Over many keys, every element lands everywhere equally often (chi-squared, 4 sigma)."""
    size, keys = 10, 20_000
    landed = permute(np.zeros(keys, np.int64), size, hash_stream(5, np.arange(keys)))
    counts = np.bincount(landed, minlength=size)
    chi = ((counts - keys / size) ** 2 / (keys / size)).sum()
    assert chi < (size - 1) + 4 * np.sqrt(2 * (size - 1))


EXPECTED = [63, 159, 4, 191, 717, 361, 875, 546, 646, 25]


def test_order_never_changes():
    """A running training resumes under a newer version: these numbers are a promise."""
    order, epochs = row_order(995, 10, 1000, 42)
    assert order.tolist() == EXPECTED
    assert epochs.tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 8191, 8192, 8193])
def test_sizes_around_blocks_and_windows(rows):
    order, _ = row_order(0, rows, rows, 9)
    assert (np.sort(order) == np.arange(rows)).all()
