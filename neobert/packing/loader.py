"""Feed a training with rows: which rows come next, and batches prepared ahead of their use.

What comes next is ``row_order``, a pure function of the number of samples seen (see ``neobert.packing.order``); that
number is the loader's whole state, so a run resumes exactly and seeks anywhere at once. Batches are prepared in
threads: numpy and memory copies release the interpreter's lock, where worker processes cost 12 times more in pickling.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from neobert.packing.order import row_order

__all__ = ["LoaderSettings", "advise_on_shards", "loader_settings", "prefetch", "row_order"]
log = logging.getLogger(__name__)
MOST_THREADS = 2  # one keeps up with a GPU; a second covers a slow read
Batch = TypeVar("Batch")


def prefetch(make: Callable[[int], Batch], start: int, stop: int, workers: int = 1, ahead: int = 2) -> Generator[Batch]:
    """Yield ``make(start) .. make(stop - 1)`` in order, made by ``workers`` threads, up to ``ahead`` a thread early.

    Args:
        make: pure function of the step; an exception it raises is raised here, at its turn.
        workers: threads; 0 makes each batch when it is asked for.
    """
    if workers == 0:
        yield from map(make, range(start, stop))
        return
    waiting: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    try:
        for step in range(start, stop):
            waiting.append(pool.submit(make, step))
            if len(waiting) > workers * ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are prepared; it cannot change them.

    Attributes:
        workers: threads (0: in line); ahead: batches each makes early.
        pin: copy to the GPU from pinned memory, without waiting.
        persistent: keep threads, and what they made, while something else (an evaluation) runs.
    """

    workers: int
    ahead: int
    pin: bool
    persistent: bool


def loader_settings(
    num_workers: int | None,
    prefetch_factor: int | None,
    pin_memory: bool | None,
    persistent_workers: bool | None,
    *,
    gpu: bool,
    ranks_on_host: int,
    cores: int | None = None,
) -> LoaderSettings:
    """Values for what is unset (``None``), from the host; what cannot work is clamped, with a warning.

    Args:
        gpu: whether batches go to a GPU.
        ranks_on_host: processes that share this host's cores.
        cores: that this process may use; by default as the system says.
    """
    share = max((cores or len(os.sched_getaffinity(0))) // max(ranks_on_host, 1), 1)
    workers = min(MOST_THREADS, max(share - 1, 1)) if num_workers is None else num_workers
    if workers > share:
        log.warning(
            "runtime.num_workers: %d threads a rank on %d core(s) a rank would wait for each other; using %d",
            *(workers, share, share),
        )
        workers = share
    pin = gpu if pin_memory is None else pin_memory
    if pin and not gpu:
        log.warning("runtime.pin_memory: there is no GPU to copy to; off")
        pin = False
    persistent = workers > 0 if persistent_workers is None else persistent_workers
    if persistent and not workers:
        log.warning("runtime.persistent_workers: runtime.num_workers is 0, so there is none to keep; off")
        persistent = False
    return LoaderSettings(workers, prefetch_factor or 2, pin, persistent)


def advise_on_shards(shards: int, world: int, key: str = "corpus.documents_per_shard") -> None:
    """Say what fewer shards than ranks mean: every rank reads rows of every shard, so it works, from fewer files."""
    if shards < world:
        log.info(
            "%d shard(s) for %d ranks: all ranks read the same files, which is slow on some shared file systems; "
            "a smaller %s makes more",
            *(shards, world, key),
        )
