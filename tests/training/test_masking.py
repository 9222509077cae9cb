"""Trap 7: which tokens are predicted, and what replaces them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert.training.masking import IGNORED, MaskTable, draws, mask_rows
from tests.training.tiny import CLS, MASK, PAD, SEP

VOCAB = 200
TABLE = MaskTable.of(MASK, [PAD, CLS, SEP], VOCAB)


def rows(count, length, seed=0):
    """Random ordinary tokens with specials, at segment boundaries and in padded tails."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(4, VOCAB, (count, length)).astype(np.int32)
    ids[generator.random(ids.shape) < 0.05] = SEP
    ids[:, 0] = CLS
    for row in range(count):
        ids[row, length - int(generator.integers(0, length // 2)) :] = PAD
    return ids


def masked(ids, seed=1, epoch=0, first=0, p=0.2, mask_all=False):
    index = np.arange(first, first + len(ids))
    return mask_rows(ids, np.full(len(ids), epoch), index, seed=seed, mlm_probability=p, mask_all=mask_all, table=TABLE)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 6),
    length=st.integers(2, 96),
    p=st.floats(0.01, 0.99),
    mask_all=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)
def test_each_row_predicts_the_rounded_share_and_never_a_special(count, length, p, mask_all, seed):
    ids = rows(count, length, seed % 1000)
    out = masked(ids, seed=seed, p=p, mask_all=mask_all)
    maskable = ~np.isin(ids, [PAD, CLS, SEP, MASK])
    chosen = out.labels != IGNORED
    assert out.columns.shape == (count, round(p * length))
    assert (chosen.sum(1) == np.rint(p * maskable.sum(1))).all()
    for row in range(count):
        columns = out.columns[row][chosen[row]]
        assert len(set(columns)) == len(columns)
        assert maskable[row, columns].all()
        assert (out.labels[row][chosen[row]] == ids[row, columns]).all()
        untouched = np.setdiff1d(np.arange(length), columns)
        assert (out.input_ids[row, untouched] == ids[row, untouched]).all()
        if mask_all:
            assert (out.input_ids[row, columns] == MASK).all()


def test_eighty_ten_ten_within_three_sigma_over_a_million_tokens():
    ids = np.random.default_rng(0).integers(4, VOCAB, (1000, 1000)).astype(np.int32)
    out = masked(ids)
    lines = np.arange(len(ids))[:, None]
    before, after = ids[lines, out.columns], out.input_ids[lines, out.columns]
    n = before.size
    assert n == 200_000
    shares = {0.8: (after == MASK), 0.1 + 0.1 / (VOCAB - 4): (after == before)}
    for expected, hits in shares.items():
        assert abs(hits.mean() - expected) < 3 * (expected * (1 - expected) / n) ** 0.5
    drawn = after[(after != MASK) & (after != before)]
    assert not np.isin(drawn, [PAD, CLS, SEP, MASK]).any()
    expected = len(drawn) / (VOCAB - 4)
    counts = np.bincount(drawn, minlength=VOCAB)[4:]
    assert abs(counts - expected).max() < 6 * expected**0.5


def test_positions_are_spread_evenly_over_the_row():
    ids = np.full((4000, 64), 9, np.int32)
    counts = np.bincount(masked(ids).columns.ravel(), minlength=64)
    expected = counts.sum() / 64
    assert abs(counts - expected).max() < 5 * expected**0.5


def test_a_row_is_masked_alike_in_any_batch_and_otherwise_in_other_epochs_and_seeds():
    ids = rows(16, 64)
    whole, part = masked(ids), masked(ids[5:9], first=5)
    assert (whole.input_ids[5:9] == part.input_ids).all()
    assert (whole.labels[5:9] == part.labels).all()
    for other in (masked(ids, epoch=1), masked(ids, seed=2), masked(ids, first=1)):
        assert (whole.columns != other.columns).any()


def test_hashes_differ_in_every_coordinate():
    epochs, index = np.zeros(8, np.int64), np.arange(8)
    values = np.concatenate([draws(seed, epochs + e, index, 32).ravel() for seed in (0, 1, 2) for e in (0, 1)])
    assert len(np.unique(values)) == len(values)
