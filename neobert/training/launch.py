"""A stage starts itself on all local GPUs, or on the ranks that `NEOBERT_LAUNCH` starts, unless a launcher already did.

    dvc repro                                    one process a local GPU, by torchrun's API; one process on a CPU
    NEOBERT_LAUNCH='srun torchrun ...' dvc repro  that command, then `-m stages.<name>`: many nodes from one dvc process
    torchrun / accelerate launch / srun          the stage joins (RANK and WORLD_SIZE are set)

The result does not depend on how many ranks there are (`trainer.global_batch_size` fixes the mathematics). When
one rank fails the others are ended and the failed one's rank and cause are named.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from neobert.config.runtime import DistributedConfig
from neobert.errors import PipelineError

GRACE_SECONDS = 300
"""How long ranks may take to end after SIGTERM: a micro-batch and a checkpoint. torchrun's own default is 30."""
PR_SET_PDEATHSIG = 1  # prctl(2)
AGAIN = (
    "run the same command again to go on from the last checkpoint "
    "(with runtime.resume_from_checkpoint: auto where it is false, which starts anew)"
)


def launched() -> bool:
    """Whether a launcher started this process as one of several ranks."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def is_main_process() -> bool:
    """Whether this process is rank 0, or alone."""
    return int(os.environ.get("RANK", "0")) == 0


def on_all_devices(module: str, config: DistributedConfig) -> bool:
    """Run `python -m module` on every rank and wait; False when this process itself is to do the work.

    Raises:
        PipelineError: a rank failed (named, with its cause), or the run was stopped by a signal.
    """
    if launched():
        return False
    command = os.environ.get("NEOBERT_LAUNCH")
    if command:
        _external(shlex.split(command), module)
        return True
    processes = config.num_processes or max(torch.cuda.device_count(), 1)
    if processes == 1:
        return False
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise PipelineError(
            f"runtime.distributed.num_processes: {processes} is more than the {torch.cuda.device_count()} GPUs here; "
            "set it to null to take them all"
        )
    _local(module, processes)
    return True


def _external(command: list[str], module: str) -> None:
    """Run the launcher in a session of its own, where a terminal's signals come from here alone, each once.

    In this process's group it would get Ctrl-C from the terminal and from us, and ranks take a second one as "at once".
    """
    environment = {key: value for key, value in os.environ.items() if key != "NEOBERT_LAUNCH"}
    child = subprocess.Popen(
        [*command, "-m", module], env=environment, start_new_session=True, preexec_fn=_end_with_parent()
    )

    def forward(number: int, frame: object) -> None:
        # SIGTERM is for the launcher to hand on; the others reach its whole group, as they do from a terminal.
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number) if number == signal.SIGTERM else os.killpg(child.pid, number)

    forwarded = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        forwarded.append(signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in forwarded}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        raise PipelineError(f"NEOBERT_LAUNCH: {shlex.join(command)} -m {module} ended with status {code}; see above")


def _end_with_parent() -> Callable[[], None] | None:
    """What a child runs before its program so that Linux sends it SIGTERM when this process dies, even by SIGKILL."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # looked up before the fork, after which little is safe
    return None if prctl is None else lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _local(module: str, processes: int) -> None:
    # Imported here: a single process never needs it, and the import takes a second.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_SECONDS))
    if not torch.cuda.is_available():
        # Several processes on one CPU share its cores; torchrun's default of one thread each would idle the rest.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"{module}-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module)
    except SignalException as error:
        raise PipelineError(f"{module}: stopped by {signal.Signals(error.sigval).name}; {AGAIN}") from error
    except ChildFailedError as error:
        raise PipelineError(f"{module}: {_failure(error)}") from error


def _failure(error: object) -> str:
    """The first rank that failed, and how."""
    rank, first = error.get_first_failure()  # type: ignore[attr-defined]
    how = (
        f"was killed by {signal.Signals(-first.exitcode).name}"
        if first.exitcode < 0
        else f"exited with {first.exitcode}"
    )
    when = time.strftime("%H:%M:%S", time.localtime(first.timestamp))
    return (
        f"rank {rank} (pid {first.pid}) {how} at {when}; the other ranks were ended. Its own message is above; {AGAIN}"
    )
