import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert.model.embedding import EmbeddingModel, look_up
from neobert.model.pooling import MODES, pool

from .builders import batch, masked_lm


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any), st.sampled_from(MODES), st.booleans())
def test_pooling_equals_a_loop(lengths, mode, weighted):
    total, dummy = sum(lengths), 3
    hidden = torch.randn(total + dummy, 4)
    weights = torch.rand(total + dummy) + 0.1 if weighted else None
    cu_seqlens = torch.tensor([0, *lengths, dummy]).cumsum(0).int()
    found = pool(hidden, cu_seqlens, len(lengths), mode, weights)
    start = 0
    for i, n in enumerate(lengths):
        rows = hidden[start : start + n]
        w = weights[start : start + n, None] if weighted else torch.ones(n, 1)
        expected = torch.zeros(4)
        if n:
            expected = {"mean": (rows * w).sum(0) / w.sum(), "cls": rows[0] * w[0], "max": (rows * w).amax(0)}[mode]
        torch.testing.assert_close(found[i], expected)
        start += n


@pytest.mark.parametrize("mode", MODES)
def test_empty_segments_are_finite_in_both_directions(mode):
    hidden = torch.randn(4, 4, requires_grad=True)
    out = pool(hidden, torch.tensor([0, 0, 4, 4]).int(), 3, mode)
    out.sum().backward()
    assert (out[[0, 2]] == 0).all()
    assert hidden.grad.isfinite().all()


def test_an_unknown_mode_raises():
    with pytest.raises(ValueError, match="median"):
        pool(torch.randn(2, 4), torch.tensor([0, 2]).int(), 1, "median")
    with pytest.raises(ValueError, match="median"):
        EmbeddingModel(masked_lm().encoder, "median", True)


def test_embeddings_of_a_text_do_not_depend_on_its_company():
    model = EmbeddingModel(masked_lm().encoder, "mean", True, token_weights=True).eval()
    model.set_token_weights(torch.rand(128) * 5 + 0.1)
    together = model(batch([9, 14, 6], multiple=32), 3)
    assert together.shape == (3, 32)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(model(batch([9]), 1), together[:1], atol=1e-6, rtol=1e-5)


def test_token_weights_start_where_they_are_set_and_must_be_positive():
    model = EmbeddingModel(masked_lm().encoder, "mean", True, token_weights=True)
    torch.testing.assert_close(model.weight_table(), torch.ones(128))
    wanted = torch.rand(128) * 12 + 0.01
    model.set_token_weights(wanted)
    torch.testing.assert_close(model.weight_table(), wanted)
    with pytest.raises(ValueError, match="positive"):
        model.set_token_weights(torch.zeros(128))


def test_the_gradient_of_a_look_up_is_summed_in_order():
    """With threads too: 100,000 tokens are more than one thread's share, and indexing adds theirs as they come."""
    generator = torch.Generator().manual_seed(0)
    ids = (torch.rand(100_000, generator=generator) ** 4 * 1000).long()
    factors = torch.randn(100_000, generator=generator)
    gradients = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        values = torch.ones(1000, requires_grad=True)
        (look_up(values, ids) * factors).sum().backward()
        gradients.append(values.grad)
    assert torch.equal(values[ids], look_up(values, ids))
    assert torch.equal(*gradients)
    torch.testing.assert_close(gradients[0], torch.zeros(1000).index_add(0, ids, factors), atol=1e-3, rtol=0)
