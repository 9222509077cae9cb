import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert.model.batch import flatten


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 8))
def test_segments_keep_their_tokens_and_positions_restart(lengths, multiple):
    sequences = [np.arange(10, 10 + n) for n in lengths]
    batch = flatten(sequences, 0, multiple)
    starts = batch.cu_seqlens.tolist()
    assert starts[0] == 0
    assert starts[-1] == len(batch.input_ids) > 0
    assert len(batch.input_ids) % multiple == 0
    for i, sequence in enumerate(sequences):
        assert batch.input_ids[starts[i] : starts[i + 1]].tolist() == sequence.tolist()
    for a, b in itertools.pairwise(starts):
        assert batch.position_ids[a:b].tolist() == list(range(b - a))
        assert b - a <= batch.max_seqlen
    assert len(batch.input_ids) - sum(lengths) <= (multiple if sum(lengths) == 0 else multiple - 1)
    assert (batch.input_ids[sum(lengths) :] == 0).all()


def test_dtypes_and_a_host_integer():
    batch = flatten([np.array([3, 4], dtype=np.uint16)], 0)
    assert (batch.input_ids.dtype, batch.cu_seqlens.dtype) == (torch.int64, torch.int32)
    assert type(batch.max_seqlen) is int


def test_nothing_to_flatten_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        flatten([], 0)
