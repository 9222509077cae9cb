"""The ranks of one run: who they are, how the model is spread over them, and the few sums they share.

Accelerate finds the launcher's environment and prepares model and optimizer (DDP, FSDP2, HSDP); one process on a
CPU or GPU is the same code with a world of 1. Host decisions (stop, saving) go over a gloo group of their own, so
that they never wait for the GPU's queue.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from neobert.config.runtime import DistributedConfig


class Workers:
    """This process among the run's ranks.

    Attributes: rank, world, device, accelerator, group (gloo, for host values and checkpoints; None alone).
    """

    def __init__(self, config: DistributedConfig, mixed_precision: str) -> None:
        self.config = config
        self.autocast_bf16 = mixed_precision == "bf16"
        # Precision is the loop's own autocast: accelerate's would cast outputs inside the compiled graph.
        self.accelerator = Accelerator(
            mixed_precision="no",
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.group = dist.new_group(backend="gloo") if self.world > 1 else None

    def describe(self) -> str:
        """The device in words."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"cpu ({torch.get_num_threads()} threads)"

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs and files."""
        return self.rank == 0

    def prepare(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """`objective` on the device and wrapped for this run's ranks; `optimizer` follows its parameters."""
        if self.world == 1:
            return objective.to(self.device)
        wrapped, _ = self.accelerator.prepare(objective, optimizer)
        return wrapped

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 autocast where the run asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast_bf16)

    def no_sync(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Skip the gradients' reduction on all but the last micro-batch of a step."""
        return contextlib.nullcontext() if last or self.world == 1 else self.accelerator.no_sync(module)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a device tensor over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any rank says so (a host round trip)."""
        if self.group is None:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group)
        return bool(value.item())

    def from_main(self, value: Any) -> Any:
        """Rank 0's picklable `value` on every rank (between this run's own processes)."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.group is not None:
            dist.barrier(group=self.group)
