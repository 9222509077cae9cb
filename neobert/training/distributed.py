"""The ranks of one run: who they are, how the model is spread over them, and the few sums they share.

Accelerate finds the launcher's environment and wraps for DDP; FSDP2 and HSDP are torch's `fully_shard` on each
block and the whole (accelerate leaves a model unsharded on CPU ranks without a word, and then nothing could be
tested there). One process on a CPU or GPU is the same code with a world of 1. Weights are gathered in fp32 and
computed on under the same autocast as without sharding, so every strategy follows the same losses. Host decisions
(stop, saving) go over a gloo group of their own, so that they never wait for the GPU's queue.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from neobert.config.runtime import DistributedConfig
from neobert.errors import PipelineError
from neobert.model.encoder import Encoder

# Newer torch renames the option; this name works in every version that we support.
warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
# torch's 25 MiB cut a compiled graph of 28 x 768 at every layer, and each cut costs time; the last reduction, which
# nothing hides, should still be short on slow links (benchmarks/README.md, weak scaling).
DDP_BUCKET_CAP_MB = 256
REFUSED = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_FSDP": "accelerate's FSDP"}


def refuse_other_engines() -> None:
    """Name what a launcher's environment asks for and this trainer does not do.

    Raises:
        PipelineError: the launcher turned DeepSpeed, FSDP1 or its own FSDP on.
    """
    for variable, engine in REFUSED.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
            raise PipelineError(
                f"{engine} was turned on by the launcher ({variable}); it is not supported (nor is FSDP1). "
                "Launch plainly and set runtime.distributed.strategy: fsdp2"
            )


def local_device() -> torch.device:
    """This process's GPU, or the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


class Workers:
    """This process among the run's ranks.

    Attributes: rank, world, device, accelerator, group and checkpoint_group (gloo; None alone), recipe_autocast (what
        a low-precision recipe wants around every forward).
    """

    def __init__(self, config: DistributedConfig, mixed_precision: str) -> None:
        refuse_other_engines()
        self.config = config
        self.autocast_bf16 = mixed_precision == "bf16"
        self.recipe_autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        # Precision is the loop's own autocast: accelerate's would cast outputs inside the compiled graph.
        self.accelerator = Accelerator(
            mixed_precision="no",
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    bucket_cap_mb=config.ddp_bucket_cap_mb or DDP_BUCKET_CAP_MB,
                    gradient_as_bucket_view=True,
                    broadcast_buffers=False,
                )
            ],
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        several = self.world > 1
        self.group = dist.new_group(backend="gloo") if several else None
        # A checkpoint is written by a thread: on a shared group its collectives would meet the loop's and hang.
        self.checkpoint_group = dist.new_group(backend="gloo") if several else None

    def describe(self) -> str:
        """The device in words."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"cpu ({torch.get_num_threads()} threads)"

    @property
    def ranks_on_host(self) -> int:
        """Processes of this run that share the host's cores."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs and files."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each rank holds only a part of the weights."""
        return self.world > 1 and self.config.strategy != "ddp"

    def prepare(self, objective: nn.Module) -> nn.Module:
        """`objective` on the device and wrapped for this run's ranks; its optimizer is made afterwards."""
        if self.world == 1:
            return objective.to(self.device)
        if not self.sharded:
            return self.accelerator.prepare_model(objective)
        objective.to(self.device)
        mesh = self._mesh()
        for encoder in (m for m in objective.modules() if isinstance(m, Encoder)):
            for layer in encoder.layers:
                fully_shard(layer, mesh=mesh)
        # Embeddings and a tied decoder stay with the root, one group, which is whole for the length of its forward.
        fully_shard(objective, mesh=mesh)
        return objective

    def _mesh(self) -> DeviceMesh:
        if self.config.strategy == "fsdp2":
            return init_device_mesh(self.device.type, (self.world,), mesh_dim_names=("shard",))
        shard = self.config.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        if self.world % shard:
            raise PipelineError(f"runtime.distributed.shard_size: {shard} must divide the {self.world} ranks")
        return init_device_mesh(self.device.type, (self.world // shard, shard), mesh_dim_names=("replicate", "shard"))

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """bf16 autocast where the run asks for it, and the low-precision recipe's."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast_bf16), self.recipe_autocast():
            yield

    def no_sync(self, module: Any, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Skip the gradients' reduction on all but the last micro-batch of a step."""
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
            return contextlib.nullcontext()
        return contextlib.nullcontext() if last or self.world == 1 else module.no_sync()

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
