"""Every Triton kernel compiles for a Hopper GPU, which takes no GPU: types that the interpreter does not check."""

import inspect
import re

import pytest

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from neobert.model.kernels import triton_max_logits, triton_rmsnorm, triton_rope, triton_swiglu  # noqa: E402

WHOLE = {"rows", "size", "tokens", "heads", "half", "inner", "turned_heads", "source_stride", "target_stride"}
FLOATS = {"eps", "scale", "sign"}
FP32 = {"rstd_ptr", "cos_ptr", "sin_ptr", "weight_ptr", "partial_ptr", "out_ptr"}
STREAM = {"x_ptr", "total_ptr", "grad_total_ptr", "grad_x_ptr"}

NORM = {"ROWS": triton_rmsnorm.FORWARD.rows, "SIZE": 1024}
CASES = {
    "norm": (triton_rmsnorm._rms_norm_forward_kernel, {**NORM, "HAS_DELTA": True}),
    "norm alone": (triton_rmsnorm._rms_norm_forward_kernel, {**NORM, "HAS_DELTA": False}),
    "norm backward": (
        triton_rmsnorm._rms_norm_backward_kernel,
        {**NORM, "HAS_GRAD_TOTAL": True, "HAS_GRAD_DELTA": True},
    ),
    "SwiGLU": (triton_swiglu._swiglu_forward_kernel, {"BLOCK": triton_swiglu.BLOCK}),
    "SwiGLU backward": (triton_swiglu._swiglu_backward_kernel, {"BLOCK": triton_swiglu.BLOCK}),
    "SwiGLU of halves": (triton_swiglu._swiglu_halves_forward_kernel, {"SIZE": 2048}),
    "SwiGLU of halves backward": (triton_swiglu._swiglu_halves_backward_kernel, {"SIZE": 2048}),
    "RoPE": (triton_rope._rotate_kernel, {"HEADS": 32, "HALF": 32}),
    "largest logit, 64 channels": (triton_max_logits._max_logits_kernel, {"D": 64, "PADDED_D": 64, "BLOCK": 64}),
    "largest logit, 24 channels": (triton_max_logits._max_logits_kernel, {"D": 24, "PADDED_D": 32, "BLOCK": 64}),
}


def type_of(name: str, kernel: str, constants: dict, stream: str, python_float: str) -> str:
    """An argument's type as a launch gives it."""
    if name in constants:
        return "constexpr"
    if name in FLOATS:
        return python_float
    if name in WHOLE:
        return "i32"
    if name in ("first_ptr", "last_ptr"):
        return "*i32"
    if name in STREAM:
        return f"*{stream}"
    return "*fp32" if name in FP32 and "swiglu" not in kernel else "*bf16"


@pytest.mark.parametrize("python_float", ["fp32", "fp64"], ids=["eager", "inductor"])
@pytest.mark.parametrize("stream", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_compiles_for_hopper(case, stream, python_float, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, constants = CASES[case]
    names = inspect.signature(kernel.fn).parameters
    signature = {n: type_of(n, kernel.__name__, constants, stream, python_float) for n in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    # The argument may be fp64; arithmetic in it would be slow.
    assert not re.search(r"\b(add|mul|fma|div)\S*\.f64", compiled.asm["ptx"])
