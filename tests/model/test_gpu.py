"""Everything that needs a GPU: each varlen kernel, fused kernels, one compiled graph. Skipped elsewhere."""

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F

from neobert.model.batch import flatten
from neobert.model.flash4 import flash4_attention
from neobert.model.gate import packing_gate
from neobert.model.kernels import select
from neobert.model.rope import apply_rope
from neobert.model.varlen import KERNELS, _why_not, probe, varlen_attention

from .builders import PAD, VARIANTS, batch, masked_lm, sequences

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
LENGTHS = [90, 140, 60, 1, 200, 21]
WIDE = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 384, "max_position_embeddings": 256}


def run(model, flat, upstream=None):
    """Hidden states in fp32 and every gradient, under bf16 autocast."""
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        hidden = model(*flat)
    hidden.float().backward(torch.ones_like(hidden, dtype=torch.float32) if upstream is None else upstream)
    return hidden.detach().float(), {n: p.grad.float().clone() for n, p in model.named_parameters()}


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp(min=1e-12)).item()


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_installed_varlen_kernel_equals_plain_attention(kernel):
    reason = _why_not(kernel, torch.device("cuda", 0))
    if reason is not None and "differs" not in reason:
        pytest.skip(f"{kernel}: {reason}")
    assert reason is None, reason


def test_a_varlen_kernel_was_found():
    assert probe(0)[0] in KERNELS


@pytest.mark.parametrize("kernel", KERNELS)
def test_packed_equals_alone_in_forward_and_gradients(kernel):
    if _why_not(kernel, torch.device("cuda", 0)) is not None:
        pytest.skip(f"{kernel} does not run here")
    torch.manual_seed(0)
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).int().cuda()
    qkv = torch.randn(int(starts[-1]), 3, 2, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(len(qkv), 2, 64, device="cuda", dtype=torch.bfloat16)
    packed = varlen_attention(qkv, starts, 256, 0.125, kernel)
    gradient = torch.autograd.grad(packed, qkv, upstream)[0]
    for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        part = qkv.detach()[a:b].clone().requires_grad_()
        alone = varlen_attention(part, torch.tensor([0, b - a], dtype=torch.int32, device="cuda"), 256, 0.125, kernel)
        assert relative(packed[a:b].float(), alone.float()) < 1e-2
        alone_gradient = torch.autograd.grad(alone, part, upstream[a:b])[0]
        assert relative(gradient[a:b].float(), alone_gradient.float()) < 2e-2


def test_flash4_with_rope_inside_equals_rope_then_attention():
    if _why_not("fa4", torch.device("cuda", 0)) is not None:
        pytest.skip("flash-attn 4 does not run here")
    torch.manual_seed(0)
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).int().cuda()
    qkv = torch.randn(int(starts[-1]), 3, 2, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    angles = torch.rand(len(qkv), 32, device="cuda") * 100
    cos, sin = angles.cos(), angles.sin()
    upstream = torch.randn(len(qkv), 2, 64, device="cuda", dtype=torch.bfloat16)
    inside = flash4_attention(qkv, starts, 256, 0.125, (cos, sin))
    turned = torch.cat((apply_rope(qkv[:, :2], cos, sin), qkv[:, 2:]), dim=1)
    outside = flash4_attention(turned, starts, 256, 0.125, None)
    assert relative(inside.float(), outside.float()) < 1e-2
    gradients = [torch.autograd.grad(o, qkv, upstream)[0].float() for o in (inside, outside)]
    assert relative(*gradients) < 2e-2


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kernels", ["auto", "liger", "torch"])
@pytest.mark.parametrize("attention", ["flash_attn_varlen", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_combination_agrees_with_plain_pytorch(variant, attention, kernels, compiled):
    if kernels == "liger":
        pytest.importorskip("liger_kernel")
    if compiled and (kernels == "liger" or attention == "sdpa") and variant != "default":
        pytest.skip("one variant is enough for the slow compilations")
    changes = {**WIDE, **VARIANTS[variant]}
    plain = masked_lm(**changes, attn_backend="sdpa", kernel_backend="torch").encoder.cuda()
    fast = masked_lm(**changes, attn_backend=attention, kernel_backend=kernels).encoder.cuda()
    flat = batch(LENGTHS, multiple=1024).to("cuda")
    torch.manual_seed(1)
    upstream = torch.randn(len(flat.input_ids), WIDE["hidden_size"], device="cuda")
    upstream[sum(LENGTHS) :] = 0
    expected, expected_gradients = run(plain, flat, upstream)
    found, gradients = run(torch.compile(fast, fullgraph=True) if compiled else fast, flat, upstream)
    assert relative(found, expected) < 3e-2
    for name, gradient in gradients.items():
        name = name.removeprefix("_orig_mod.")
        assert relative(gradient, expected_gradients[name]) < 8e-2, name
    torch._dynamo.reset()


def test_one_compilation_serves_varied_batches():
    encoder = masked_lm(**WIDE).encoder.cuda()
    compiled = torch.compile(encoder, fullgraph=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for seed, lengths in enumerate(([1024], [500, 524], [100] * 10 + [24], [1, 1023])):
        flat = flatten(sequences(lengths, seed), PAD).to("cuda")
        torch._dynamo.mark_dynamic(flat.cu_seqlens, 0)
        with torch.autocast("cuda", torch.bfloat16):
            compiled(flat.input_ids, flat.position_ids, flat.cu_seqlens, 1024).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_packing_gate_passes_in_bf16(variant):
    encoder = masked_lm(**WIDE, **VARIANTS[variant]).encoder.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        assert packing_gate(encoder, batch(LENGTHS).to("cuda")) < 3e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_liger_cross_entropy_equals_plain_pytorch(dtype):
    liger = pytest.importorskip("neobert.model.kernels.liger")
    torch.manual_seed(0)
    hidden = torch.randn(300, 64, device="cuda", dtype=dtype, requires_grad=True)
    weight = (torch.randn(1000, 64, device="cuda") * 0.1).to(dtype).requires_grad_()
    labels = torch.randint(0, 1000, (300,), device="cuda")
    labels[::3] = -100
    found = liger.linear_cross_entropy(hidden, weight, labels)
    expected = F.cross_entropy(hidden.float() @ weight.float().T, labels, reduction="sum")
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    assert relative(found, expected) < limit
    pairs = zip(*(torch.autograd.grad(o, (hidden, weight)) for o in (found, expected)), strict=True)
    assert all(relative(a.float(), b.float()) < limit for a, b in pairs)


def test_auto_takes_the_project_s_own_kernels():
    assert select.resolve_kernels("auto", "cuda") == "triton"
