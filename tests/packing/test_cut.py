"""Cutting keeps every token once and in order, makes no tiny piece, and fills rows that whole pieces cannot fill."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert.packing.cut import SHORTEST, Window, plan_window, split_documents
from neobert.packing.plan import plan_rows

documents_and_length = st.tuples(st.lists(st.integers(0, 400), max_size=60), st.integers(8, 70))


def default_like(count: int, seed: int) -> np.ndarray:
    """Tokens of documents as in the default corpus: a quarter below 44, half below 95, 5% above 700."""
    drawn = np.random.default_rng(seed).lognormal(4.6, 1.1, count)
    return np.clip(drawn, 9, 200_000).astype(np.int64)


def pieces_by_document(window: Window, documents: np.ndarray) -> list[np.ndarray]:
    """Lengths of each document's pieces; that they can be told apart proves that no piece spans two documents."""
    ends = np.concatenate([[0], np.cumsum(window.lengths)])
    borders = np.searchsorted(ends, np.concatenate([[0], np.cumsum(documents)]))
    assert (ends[borders] == np.concatenate([[0], np.cumsum(documents)])).all()
    return [window.lengths[first:stop] for first, stop in itertools.pairwise(borders.tolist())]


def check(window: Window, documents: np.ndarray, length: int) -> None:
    shortest = min(max((length - 2) // SHORTEST, 1), length - 2)
    for document, sizes in zip(documents.tolist(), pieces_by_document(window, documents), strict=True):
        assert sizes.sum() == document
        assert (sizes >= 1).all()
        assert (sizes <= length - 2).all()
        if document <= length - 2:
            assert len(sizes) == (document > 0), "only documents longer than a row are cut"
        else:
            assert sizes.min() >= shortest, "no tiny piece"
    sizes = window.lengths[window.selected] + 2
    used = np.bincount(window.plan.row, weights=sizes, minlength=window.plan.rows)
    assert len(window.plan.row) == len(sizes)
    assert len(used) == window.plan.rows
    assert ((used > 0) & (used <= length)).all()
    assert (np.diff(sizes[window.plan.order]) <= 0).all(), "from long to short"
    assert (np.sort(window.plan.order) == np.arange(len(sizes))).all()


@settings(deadline=None, max_examples=100)
@given(documents_and_length)
def test_splitting_conserves_documents(case):
    lengths, capacity = case
    pieces = split_documents(np.array(lengths, np.int64), capacity)
    for document, length in enumerate(lengths):
        sizes = pieces.length[pieces.document == document]
        assert len(sizes) == -(-length // capacity), "the fewest pieces"
        assert sizes.sum() == length
        assert (sizes <= capacity).all()
        if length > capacity:
            assert sizes.min() >= capacity // SHORTEST, "no tiny tail"


@settings(deadline=None, max_examples=200)
@given(documents_and_length)
def test_a_window_holds_every_token_once_and_needs_no_more_rows_than_whole_pieces(case):
    documents, length = np.array(case[0], np.int64), case[1]
    window = plan_window(documents, length)
    check(window, documents, length)
    assert (window.selected == np.arange(len(window.lengths))).all()
    assert window.plan.rows <= plan_rows(split_documents(documents, length - 2).length + 2, length).rows


@settings(deadline=None, max_examples=100)
@given(documents_and_length, st.data())
def test_repeated_documents_are_placed_as_often_as_chosen(case, data):
    documents, length = np.array(case[0], np.int64), case[1]
    number = st.integers(0, max(len(documents) - 1, 0))
    chosen = np.array(sorted(data.draw(st.lists(number, max_size=40 if len(documents) else 0))), np.int64)
    window = plan_window(documents, length, chosen)
    check(window, documents, length)
    pieces = pieces_by_document(window, documents)
    first = np.cumsum([0] + [len(sizes) for sizes in pieces])
    expected = [n for document in chosen for n in range(first[document], first[document + 1])]
    assert window.selected.tolist() == expected, "each document's pieces, in order, each time"


@pytest.mark.parametrize("length", [64, 128, 256, 512, 1024])
def test_rows_are_full_on_windows_like_the_default_corpus(length):
    for seed in range(2):
        documents = default_like(32_768, seed)
        window = plan_window(documents, length)
        check(window, documents, length)
        assert (window.lengths + 2).sum() / (window.plan.rows * length) >= 0.9995
        fewest = len(split_documents(documents, length - 2).length)
        assert len(window.lengths) <= 1.04 * fewest


def test_documents_just_longer_than_a_row_share_rows():
    """Two halves of 63 and 64 tokens do not fit with one another: whole pieces leave rows half empty."""
    documents = np.full(1000, 127)
    window = plan_window(documents, 128)
    check(window, documents, 128)
    assert plan_rows(split_documents(documents, 126).length + 2, 128).rows == 2000
    assert window.plan.rows <= 1050


def test_full_pieces_are_dealt_out_where_no_shorter_ones_are_left():
    """Rows with a gap of 26 each, one document of many full pieces: they fill the gaps exactly."""
    documents = np.array([126 * 200] + [100] * 300)
    window = plan_window(documents, 128)
    check(window, documents, 128)
    assert plan_rows(split_documents(documents, 126).length + 2, 128).rows == 500
    assert window.plan.rows == -(-int((window.lengths + 2).sum()) // 128) == 444


@pytest.mark.parametrize(
    ("documents", "rows"),
    [([], 0), ([0, 0], 0), ([126] * 50, 50), ([1] * 84, 2), ([10_000_000], 79_366), ([10_000_000] + [1] * 38, 79_366)],
)
def test_extreme_windows(documents, rows):
    documents = np.array(documents, np.int64)
    window = plan_window(documents, 128)
    check(window, documents, 128)
    assert window.plan.rows == rows
