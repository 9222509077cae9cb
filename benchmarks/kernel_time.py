"""GPU time of a subject's step by kernel, from torch.profiler: what each group of kernels costs, and which are largest.

Groups go by the kernels' names, the first that matches; kernels that torch.compile makes carry the operators they fuse
in theirs. The profiler slows the host, so the gaps between kernels are not its business: only kernels' own time is
summed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import DeviceType

from benchmarks.subject import Timed

GROUPS = {
    "norm": ("_rms_norm_",),
    "SwiGLU": ("_swiglu_",),
    "RoPE": ("_rotate_kernel",),
    "attention": ("flash", "fmha"),
    "matrix products": ("gemm", "nvjet", "cutlass", "splitk"),
    "optimizer and clipping": ("multi_tensor", "fusedadam", "fused_adam"),
    "copies": ("memcpy", "memset"),
}


def group_of(kernel: str) -> str:
    """The group of a kernel by its name."""
    name = kernel.lower()
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), "other")


def kernel_times(subject: Timed, steps: int, largest: int) -> dict[str, Any]:
    """Milliseconds a step by group, and of the `largest` kernels (name, milliseconds a step, calls a step)."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        subject.block(steps, record=False)
    kernels = [event for event in profile.key_averages() if event.device_type == DeviceType.CUDA]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    groups: dict[str, float] = {}
    for event in kernels:
        group = group_of(event.key)
        groups[group] = groups.get(group, 0.0) + event.self_device_time_total / 1e3 / steps
    found = [(event.key, event.self_device_time_total / 1e3 / steps, event.count / steps) for event in kernels]
    return {"groups": dict(sorted(groups.items(), key=lambda item: -item[1])), "kernels": found[:largest]}


def table(times: dict[str, Any]) -> str:
    """The figures as lines of text."""
    lines = [f"GPU time of a step by kernel: {sum(times['groups'].values()):.1f} ms"]
    lines += [f"  {group:24} {ms:8.2f} ms" for group, ms in times["groups"].items()]
    lines += [f"    {ms:8.3f} ms {calls:6.1f} x  {name[:140]}" for name, ms, calls in times["kernels"]]
    return "\n".join(lines)
