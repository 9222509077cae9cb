"""Run by test_kernels.py in a process of its own: Triton kernels on a GPU, or under TRITON_INTERPRET=1 on the CPU.

Prints one JSON object: largest relative difference from plain PyTorch by kernel, forward and gradients together.
"""

import json
import sys

import torch
import torch.nn.functional as F

from neobert.model.kernels.triton_rmsnorm import add_rms_norm
from neobert.model.kernels.triton_rope import rotate_qkv, rotate_queries_keys
from neobert.model.kernels.triton_swiglu import swiglu
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


def main() -> None:
    torch.manual_seed(0)
    found = {}
    low = torch.bfloat16
    for name, dtype in (("fp32", torch.float32), ("bf16", low)):
        a, b = tensor(37, 200, dtype=dtype), tensor(37, 200, dtype=dtype)
        reference = (F.silu(a.float()) * b.float()).to(dtype)
        found[f"swiglu {name}"] = worst([swiglu(a, b)], [reference], [a, b])
        for heads, channels in ((3, 16), (12, 24)):
            qkv = tensor(19, 3, heads, channels, dtype=dtype)
            angles = torch.rand(19, channels // 2).to(DEVICE) * 50
            cos, sin = angles.cos(), angles.sin()
            turned = torch.cat((apply_rope(qkv[:, :2], cos, sin), qkv[:, 2:]), dim=1)
            found[f"rope {name} {heads}x{channels}"] = worst([rotate_qkv(qkv, cos, sin, 1)], [turned], [qkv])
            own = qkv.detach().clone()
            rotate_queries_keys(own[:, :2], own[:, :2], cos, sin, 1)
            found[f"rope in place {name} {heads}x{channels}"] = (own - turned).abs().max().item()
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
    print(json.dumps(found))


if __name__ == "__main__":
    main()
