"""Each kernel of a block alone on a GPU: plain PyTorch, torch.compile, Liger and this project's Triton.

``python -m benchmarks.kernels [--tokens 65536] [--hidden 768] [--heads 12] [--inner 2048] [--only swiglu,...]``. Times
are medians of CUDA-event measurements with the L2 cache flushed in between; GB/s counts the bytes that the operation
must move, so that different implementations share one denominator. Prints a table, and one JSON object as its last
line. Kernels are imported where they are timed, so that ``--help`` answers without them.
"""

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from neobert.model.flash4 import flash4_attention
from neobert.model.rope import apply_rope
from neobert.model.varlen import probe, varlen_attention

DEVICE, LOW, FULL = "cuda", torch.bfloat16, torch.float32
Timed = dict[str, dict[str, float]]


def measure(functions: dict[str, Callable], inputs: list[torch.Tensor], read: float, written: float) -> Timed:
    """Forward and backward milliseconds and GB/s of each implementation; bytes are forward's and backward's."""
    from triton.testing import do_bench

    found: Timed = {}
    for name, function in functions.items():
        outputs = [o for o in _tuple(function()) if o.requires_grad]
        upstream = [torch.randn_like(o) for o in outputs]

        def backward(outputs=outputs, upstream=upstream):
            return torch.autograd.grad(outputs, inputs, upstream, retain_graph=True)

        forward_ms, backward_ms = (do_bench(f, return_mode="median") for f in (function, backward))
        found[name] = {
            "forward_ms": forward_ms,
            "backward_ms": backward_ms,
            "forward_gb_s": read / forward_ms / 1e6,
            "backward_gb_s": written / backward_ms / 1e6,
        }
        torch._dynamo.reset()
    return found


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)


def random(*shape: int, dtype: torch.dtype = LOW) -> torch.Tensor:
    """A leaf on the GPU."""
    return torch.randn(*shape, device=DEVICE, dtype=dtype).requires_grad_()


def swiglu(args: argparse.Namespace) -> Timed:
    """``silu(a) * b``: 3 tensors forward, 5 backward."""
    from neobert.model.kernels import liger, triton_swiglu

    a, b = random(args.tokens, args.inner), random(args.tokens, args.inner)
    unit = a.numel() * a.element_size()
    plain = lambda: F.silu(a) * b  # noqa: E731
    functions = {
        "eager": plain,
        "compile": torch.compile(plain),
        "liger": lambda: liger.swiglu(a, b),
        "triton": lambda: triton_swiglu.swiglu(a, b),
    }
    return measure(functions, [a, b], 3 * unit, 5 * unit)


def norm(args: argparse.Namespace, stream: torch.dtype) -> Timed:
    """Residual sum and RMSNorm; the stream is fp32 or bf16, the branch and the norm's output bf16."""
    from neobert.model.kernels import liger, triton_rmsnorm

    x, branch = random(args.tokens, args.hidden, dtype=stream), random(args.tokens, args.hidden)
    weight = random(args.hidden, dtype=FULL)
    wide, low = x.numel() * x.element_size(), branch.numel() * branch.element_size()

    def plain():
        total = x + branch
        return total, F.rms_norm(total, (args.hidden,), weight.to(total.dtype), 1e-5).to(LOW)

    functions = {
        "eager": plain,
        "compile": torch.compile(plain),
        "liger": lambda: liger.add_rms_norm(x, branch, weight, 1e-5, LOW),
        "triton": lambda: triton_rmsnorm.add_rms_norm(x, branch, weight, 1e-5, LOW),
    }
    return measure(functions, [x, branch, weight], 2 * wide + 2 * low, 3 * wide + 2 * low)


def rope(args: argparse.Namespace) -> Timed:
    """RoPE on a fused qkv, values copied: 2 tensors each way."""
    from neobert.model.kernels import liger, triton_rope

    channels = args.hidden // args.heads
    qkv = random(args.tokens, 3, args.heads, channels)
    angles = torch.rand(args.tokens, channels // 2, device=DEVICE) * 1000
    cos, sin = angles.cos(), angles.sin()
    unit = qkv.numel() * qkv.element_size()

    def plain():
        return torch.cat((apply_rope(qkv[:, :2], cos, sin), qkv[:, 2:]), dim=1)

    functions = {
        "eager": plain,
        "compile": torch.compile(plain),
        "liger": lambda: liger.rotate_qkv(qkv, cos, sin),
        "triton": lambda: triton_rope.rotate_qkv(qkv, cos, sin, 1),
    }
    return measure(functions, [qkv], 2 * unit, 2 * unit)


def attention(args: argparse.Namespace) -> Timed:
    """RoPE and varlen attention over documents of mean length 318 in rows of 1024; figures count RoPE's bytes only."""
    from neobert.model.kernels import triton_rope

    channels = args.hidden // args.heads
    qkv = random(args.tokens, 3, args.heads, channels)
    starts = torch.tensor(segment_starts(args.tokens), dtype=torch.int32, device=DEVICE)
    angles = torch.rand(args.tokens, channels // 2, device=DEVICE) * 1000
    cos, sin = angles.cos(), angles.sin()
    scale, unit = channels**-0.5, qkv.numel() * qkv.element_size()
    kernel, reasons = probe(torch.cuda.current_device())
    print(f"varlen kernel: {kernel} ({reasons})")

    def apart(name):
        return lambda: varlen_attention(triton_rope.rotate_qkv(qkv, cos, sin, 1), starts, 1024, scale, name)

    functions = {"torch + triton rope": apart("torch")}
    if kernel == "fa4":
        functions["fa4 + triton rope"] = apart("fa4")
        functions["fa4 with rope inside"] = lambda: flash4_attention(qkv, starts, 1024, scale, (cos, sin))
    return measure(functions, [qkv], 2 * unit, 2 * unit)


def segment_starts(tokens: int) -> list[int]:
    """Log-normal document lengths cut at rows of 1024, as the packed training sees them."""
    generator = torch.Generator().manual_seed(0)
    starts = [0]
    while starts[-1] < tokens:
        length = int(torch.empty(1).log_normal_(5.8, 0.9, generator=generator).clamp(16, 1024))
        row_end = (starts[-1] // 1024 + 1) * 1024
        starts.append(min(starts[-1] + length, row_end, tokens))
    return starts


BENCHMARKS = {
    "swiglu": swiglu,
    "norm_fp32_stream": lambda args: norm(args, FULL),
    "norm_bf16_stream": lambda args: norm(args, LOW),
    "rope": rope,
    "attention": attention,
}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("tokens", 65536), ("hidden", 768), ("heads", 12), ("inner", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="comma-separated benchmarks")
    args = parser.parse_args()
    missing = [package for package in ("triton", "liger_kernel") if find_spec(package) is None]
    if missing:
        raise SystemExit(f"error: benchmarks.kernels needs {' and '.join(missing)}, on a GPU: pip install '.[gpu]'")
    results = {name: BENCHMARKS[name](args) for name in args.only.split(",")}
    print(f"{'kernel':18} {'implementation':22} {'forward':>18} {'backward':>18}")
    for kernel, found in results.items():
        for name, r in found.items():
            forward = f"{r['forward_ms']:.3f} ms {r['forward_gb_s']:5.0f} GB/s"
            backward = f"{r['backward_ms']:.3f} ms {r['backward_gb_s']:5.0f} GB/s"
            print(f"{kernel:18} {name:22} {forward:>18} {backward:>18}")
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "shape": vars(args)}
    print(json.dumps({"benchmark": "kernels", **about, "results": results}))


if __name__ == "__main__":
    main()
