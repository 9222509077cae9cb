"""Run by test_kernels.py in a process of its own: Triton kernels on a GPU, or under TRITON_INTERPRET=1 on the CPU.

Prints one JSON object: largest relative difference from plain PyTorch by kernel, forward and gradients together.
"""

import itertools
import json
import sys

import torch
import torch.nn.functional as F

from neobert.config.model import ModelConfig
from neobert.model.kernels.triton_max_logits import segmented_max_logits
from neobert.model.kernels.triton_rmsnorm import add_rms_norm
from neobert.model.kernels.triton_rope import rotate_qkv, rotate_queries_keys
from neobert.model.kernels.triton_swiglu import swiglu, swiglu_halves
from neobert.model.mlp import SwiGLU
from neobert.model.rope import apply_rope

DEVICE = sys.argv[1]


def tensor(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=torch.float32).to(DEVICE, dtype).requires_grad_()


def worst(ours, theirs, inputs):
    """Outputs and gradients for the same random upstream, each relative to the reference's largest number."""
    upstream = [torch.randn(o.shape, dtype=torch.float32).to(DEVICE, o.dtype) for o in theirs]
    grads = [torch.autograd.grad(outputs, inputs, upstream) for outputs in (ours, theirs)]
    pairs = [*zip(ours, theirs, strict=True), *zip(*grads, strict=True)]
    for a, b in pairs:
        assert (a.dtype, a.shape) == (b.dtype, b.shape), (a.dtype, b.dtype, a.shape, b.shape)
    return max(((a.float() - b.float()).abs().max() / b.float().abs().max()).item() for a, b in pairs)


def rms(x, delta, weight, dtype):
    total = x if delta is None else x + delta
    return total, F.rms_norm(total.float(), (x.shape[-1],), weight.float(), 1e-5).to(dtype)


def plain_max_logits(qk, starts, scale):
    """The largest number of each head's score matrices, a segment at a time."""
    parts = [qk[a:b].float().permute(1, 2, 0, 3) for a, b in itertools.pairwise(starts) if b > a]
    return torch.stack([(q @ k.transpose(-1, -2) * scale).amax((1, 2)) for q, k in parts]).amax(0)


def main() -> None:
    torch.manual_seed(0)
    found = {}
    low = torch.bfloat16
    for name, dtype in (("fp32", torch.float32), ("bf16", low)):
        a, b = tensor(37, 200, dtype=dtype), tensor(37, 200, dtype=dtype)
        reference = (F.silu(a.float()) * b.float()).to(dtype)
        found[f"swiglu {name}"] = worst([swiglu(a, b)], [reference], [a, b])
        both = torch.cat((a, b), 1).detach().requires_grad_()
        a, b = both.float().chunk(2, 1)
        found[f"swiglu halves {name}"] = worst([swiglu_halves(both)], [(F.silu(a) * b).to(dtype)], [both])
        for heads, channels in ((3, 16), (12, 24)):
            qkv = tensor(19, 3, heads, channels, dtype=dtype)
            angles = torch.rand(19, channels // 2).to(DEVICE) * 50
            cos, sin = angles.cos(), angles.sin()
            turned = torch.cat((apply_rope(qkv[:, :2], cos, sin), qkv[:, 2:]), dim=1)
            found[f"rope {name} {heads}x{channels}"] = worst([rotate_qkv(qkv, cos, sin, 1)], [turned], [qkv])
            own = qkv.detach().clone()
            rotate_queries_keys(own[:, :2], own[:, :2], cos, sin, 1)
            found[f"rope in place {name} {heads}x{channels}"] = (own - turned).abs().max().item()
    feed_forward, x = SwiGLU(ModelConfig(hidden_size=48, intermediate_size=200)).to(DEVICE), tensor(37, 48)
    outputs = [[feed_forward(x, kernels)] for kernels in ("triton", "torch")]
    found["feed-forward fp32"] = worst(*outputs, [x, *feed_forward.parameters()])
    for name, stream, branch in (
        ("fp32", torch.float32, torch.float32),
        ("mixed", torch.float32, low),
        ("bf16", low, low),
    ):
        x, delta, weight = tensor(83, 48, dtype=stream), tensor(83, 48, dtype=branch), tensor(48)
        ours, theirs = add_rms_norm(x, delta, weight, 1e-5, branch), rms(x, delta, weight, branch)
        found[f"add norm {name}"] = worst(ours, theirs, [x, delta, weight])
        ours, theirs = add_rms_norm(x, None, weight, 1e-5, branch), rms(x, None, weight, branch)
        found[f"norm {name}"] = worst(ours[1:], theirs[1:], [x, weight])
    for name, dtype in (("fp32", torch.float32), ("half", low)):
        # Segments shorter and longer than a block of queries, one empty, one ending in the last block.
        for starts, heads, channels in (([0, 3, 70, 70, 150], 3, 24), ([0, 130], 2, 64), ([0, 5, 9], 1, 16)):
            # Triton's interpreter multiplies bf16 as if they were integers.
            half = torch.float16 if DEVICE == "cpu" and dtype == low else dtype
            qk = tensor(starts[-1], 2, heads, channels, dtype=half).detach()
            cu_seqlens = torch.tensor(starts, dtype=torch.int32, device=DEVICE)
            expected = plain_max_logits(qk, starts, 0.3)
            ours = segmented_max_logits(qk, cu_seqlens, 0.3)
            found[f"max logits fp32 from {name} {starts}"] = ((ours - expected).abs() / expected.abs()).max().item()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
