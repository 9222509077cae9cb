"""How flash-attn 4 is called, against a stand-in that computes plain attention on the CPU."""

import itertools
import os
import sys
import types

import pytest
import torch

from neobert.model import flash4
from neobert.model.rope import apply_rope

THRESHOLD = 256


class StandIn(types.ModuleType):
    """``flash_attn.cute.interface`` as far as it is used; notes (kind, segments, longest) of each call."""

    BIN_BATCH_SEARCH_THRESH = THRESHOLD

    def __init__(self):
        super().__init__("flash_attn.cute.interface")
        self.calls = []

    def _plain(self, q, k, v, starts, scale):
        parts = []
        for a, b in itertools.pairwise(starts.tolist()):
            scores = torch.einsum("ind,jnd->nij", q[a:b], k[a:b]) * scale
            parts.append(torch.einsum("nij,jnd->ind", scores.softmax(-1), v[a:b]))
        return torch.cat(parts)

    def _flash_attn_fwd(self, q, k, v, cu_seqlens_q, max_seqlen_q, softmax_scale, **_):
        self.calls.append(("forward", len(cu_seqlens_q) - 1, max_seqlen_q))
        return self._plain(q, k, v, cu_seqlens_q, softmax_scale), q.new_zeros(q.shape[1], q.shape[0]), None, None

    def _flash_attn_bwd(self, q, k, v, out, dout, lse, *, cu_seqlens_q, max_seqlen_q, softmax_scale, dq, dk, dv, **_):
        self.calls.append(("backward", len(cu_seqlens_q) - 1, max_seqlen_q))
        for a, b in itertools.pairwise(cu_seqlens_q.tolist()):
            weights = (torch.einsum("ind,jnd->nij", q[a:b], k[a:b]) * softmax_scale).softmax(-1)
            upstream = torch.einsum("ind,jnd->nij", dout[a:b], v[a:b])
            scores = weights * (upstream - (weights * upstream).sum(-1, keepdim=True)) * softmax_scale
            dq[a:b] = torch.einsum("nij,jnd->ind", scores, k[a:b])
            dk[a:b] = torch.einsum("nij,ind->jnd", scores, q[a:b])
            dv[a:b] = torch.einsum("nij,ind->jnd", weights, dout[a:b])


@pytest.fixture
def interface(monkeypatch):
    module = StandIn()
    cute = types.ModuleType("flash_attn.cute")
    cute.interface = module
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", module)

    # The Triton kernel that turns queries and keys does not run on a CPU.
    def turn(source, target, cos, sin, sign):
        target[:, :2] = apply_rope(source[:, :2], cos, sin * sign)

    rope = types.ModuleType("neobert.model.kernels.triton_rope")
    rope.rotate_queries_keys = turn
    monkeypatch.setitem(sys.modules, rope.__name__, rope)
    flash4._compile_forward.cache_clear()
    flash4._compile_backward.cache_clear()
    yield module
    flash4._compile_forward.cache_clear()
    flash4._compile_backward.cache_clear()


@pytest.mark.parametrize("rotary", [False, True])
def test_attention_and_gradient_are_plain_attentions(interface, rotary):
    torch.manual_seed(0)
    starts = torch.tensor([0, 5, 6, 13], dtype=torch.int32)
    qkv = torch.randn(13, 3, 2, 8, requires_grad=True)
    angles = torch.rand(13, 4) * 10
    cos, sin = angles.cos(), angles.sin()
    found = flash4.flash4_attention(qkv, starts, 8, 0.3, (cos, sin) if rotary else None)
    q, k, v = qkv.unbind(1)
    if rotary:
        q, k = apply_rope(qkv[:, :2], cos, sin).unbind(1)
    expected = interface._plain(q, k, v, starts, 0.3)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(o, qkv, upstream)[0] for o in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_kernels_for_few_and_for_many_segments_are_compiled_at_the_first_call(interface):
    def step(segments, longest=64):
        before = len(interface.calls)
        starts = torch.arange(segments + 1, dtype=torch.int32) * 2
        qkv = torch.randn(segments * 2, 3, 2, 8, requires_grad=True)
        flash4.flash4_attention(qkv, starts, longest, 0.3, None).sum().backward()
        return interface.calls[before:]

    first = step(3)
    for kind in ("forward", "backward"):
        counts = [count for name, count, _ in first if name == kind]
        assert min(counts) <= THRESHOLD < max(counts), kind
    assert {longest for *_, longest in first} == {64}
    # Nothing is left to be compiled for later batches, whatever their number of segments.
    for segments in (1, THRESHOLD, THRESHOLD + 1, 400):
        assert step(segments) == [("forward", segments, 64), ("backward", segments, 64)]
    assert len(step(3, longest=32)) > 2  # other kernels may be needed where segments are shorter


def test_a_forward_alone_compiles_no_backward(interface):
    with torch.no_grad():
        flash4.flash4_attention(torch.randn(6, 3, 2, 8), torch.tensor([0, 6], dtype=torch.int32), 8, 0.3, None)
    assert {kind for kind, *_ in interface.calls} == {"forward"}


@pytest.fixture
def unset(monkeypatch):
    ours = (flash4.CACHE, flash4.CACHE_DIR)
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name not in ours})


def test_compiled_kernels_are_kept_in_a_folder_of_ones_own(unset, tmp_path):
    flash4.keep_compiled_kernels(tmp_path / "kernels")
    assert os.environ[flash4.CACHE] == "1"
    assert os.environ[flash4.CACHE_DIR] == str(tmp_path / "kernels")
    assert (tmp_path / "kernels").stat().st_mode & 0o077 == 0


def test_a_folder_that_others_may_write_to_is_not_trusted(unset, tmp_path):
    tmp_path.chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link", tmp_path / "missing" / "folder"):
        flash4.keep_compiled_kernels(folder)
        assert flash4.CACHE not in os.environ


def test_the_environment_decides_about_kept_kernels(unset, tmp_path):
    os.environ[flash4.CACHE] = "0"
    flash4.keep_compiled_kernels(tmp_path / "kernels")
    assert os.environ[flash4.CACHE] == "0"
    assert not (tmp_path / "kernels").exists()
