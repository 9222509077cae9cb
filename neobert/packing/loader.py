"""Feed a training with rows: which rows come next, and batches prepared ahead of their use.

What comes next is ``row_order``, a pure function of the number of samples seen (see ``neobert.packing.order``); that
number is the loader's whole state, so a run resumes exactly and seeks anywhere at once. Batches are prepared in
threads: numpy and memory copies release the interpreter's lock, where worker processes cost 12 times more in pickling.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from neobert.packing.order import row_order

__all__ = ["prefetch", "row_order"]
Batch = TypeVar("Batch")


def prefetch(make: Callable[[int], Batch], start: int, stop: int, workers: int = 1, ahead: int = 2) -> Iterator[Batch]:
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
