"""Traps 1 and 3: the layout of qkv by hand, and no leak between segments on any path."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neobert.errors import PipelineError
from neobert.model import varlen
from neobert.model.attention import Attention, attend, padded_attention
from neobert.model.plan import make_plan
from neobert.model.segments import padded_layout
from neobert.model.segments_op import segmented_attention

from .builders import VARIANTS, batch, config, masked_lm


def one_by_one(qkv, starts, scale):
    """Softmax attention of each segment alone, written out."""
    parts = []
    for a, b in itertools.pairwise(starts):
        q, k, v = qkv[a:b].permute(1, 2, 0, 3)
        parts.append(((q @ k.transpose(-1, -2) * scale).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(parts)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=7).filter(any), st.integers(0, 99))
def test_both_sdpa_paths_equal_each_segment_alone(lengths, seed):
    torch.manual_seed(seed)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    qkv = torch.randn(int(cu_seqlens[-1]), 3, 2, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(len(qkv), 2, 4, dtype=torch.float64)
    expected = one_by_one(qkv, cu_seqlens.tolist(), 0.3)
    expected_gradient = torch.autograd.grad(expected, qkv, upstream)[0]
    layout = padded_layout(cu_seqlens, qkv.dtype)
    for out in (padded_attention(qkv, layout, 0.3), segmented_attention(qkv, cu_seqlens, 0.3)):
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(torch.autograd.grad(out, qkv, upstream)[0], expected_gradient)


def test_one_head_computed_by_hand():
    torch.manual_seed(0)
    cfg = config()
    attention = Attention(cfg)
    x = torch.randn(5, cfg.hidden_size)
    plan = make_plan(cfg, x, torch.tensor([0, 5], dtype=torch.int32), 5, None)
    # An output projection that reads head 2 alone shows that head in the first channels.
    head, d = 2, cfg.head_dim
    with torch.no_grad():
        attention.out.weight.zero_()
        attention.out.weight[:d, head * d : (head + 1) * d] = torch.eye(d)
    found = attention(x, plan)[:, :d]
    w_q, w_k, w_v = (attention.qkv.weight.view(3, -1, d, cfg.hidden_size)[i, head] for i in range(3))
    q, k, v = x @ w_q.T, x @ w_k.T, x @ w_v.T
    by_hand = torch.stack([sum(w * v[j] for j, w in enumerate((q[i] @ k.T / d**0.5).softmax(0))) for i in range(5)])
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_segment_never_sees_another(variant, compiled):
    model = masked_lm(**VARIANTS[variant]).encoder
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    clean = batch([9, 14, 6])
    ids = clean.input_ids.clone()
    ids[:9] = (ids[:9] + 1) % 100 + 5  # segment 0 changed throughout
    before, after = run(*clean), run(ids, *clean[1:])
    assert torch.equal(before[9:], after[9:])
    assert not torch.isclose(before[:9], after[:9]).all(-1).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gradient_from_one_segment_into_another(variant):
    model = masked_lm(**VARIANTS[variant]).encoder
    clean = batch([9, 14, 6])
    embedded = []
    model.embeddings.register_forward_hook(lambda module, args, out: embedded.append(out) or out)
    hidden = model(*clean)
    gradient = torch.autograd.grad(hidden[9:23].square().sum(), embedded[0])[0]
    assert torch.equal(gradient[:9], torch.zeros_like(gradient[:9]))
    assert torch.equal(gradient[23:], torch.zeros_like(gradient[23:]))
    assert gradient[9:23].abs().min(-1).values.max() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_equals_alone_in_forward_and_gradients(variant):
    model = masked_lm(**VARIANTS[variant]).double()
    lengths = [9, 14, 6, 14]
    packed = batch(lengths)
    logits = model(*packed)
    upstream = torch.randn_like(logits)
    (logits * upstream).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    start = 0
    for n in lengths:
        ids = packed.input_ids[start : start + n]
        alone = model(ids, torch.arange(n), torch.tensor([0, n], dtype=torch.int32), n)
        torch.testing.assert_close(logits[start : start + n], alone)
        (alone * upstream[start : start + n]).sum().backward()
        start += n
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


def test_a_requested_and_missing_kernel_is_an_error():
    model = masked_lm(attn_backend="flash_attn_varlen").encoder
    with pytest.raises(PipelineError, match=r"model\.attn_backend: 'flash_attn_varlen'"):
        model(*batch([4, 5]))


def test_attend_uses_the_operator_where_no_layout_was_made():
    cu_seqlens = torch.tensor([0, 3, 7], dtype=torch.int32)
    qkv = torch.randn(7, 3, 2, 4)
    plan = make_plan(config(), qkv, cu_seqlens, 4, None)
    torch.testing.assert_close(
        attend(qkv, plan, 0.5), attend(qkv, plan._replace(layout=None), 0.5), atol=1e-6, rtol=1e-6
    )


def test_the_probe_leaves_no_trace_in_a_checkpointed_forward(monkeypatch):
    """The first forward of a run may be a checkpointed one: what it saves must be what its recomputation saves."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    kernel = lambda qkv, starts, longest, scale: one_by_one(qkv, starts.tolist(), scale)  # noqa: E731
    monkeypatch.setitem(varlen.KERNELS, "torch", kernel)
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        assert varlen._why_not("torch", torch.device("cpu")) is None
    assert not saved
