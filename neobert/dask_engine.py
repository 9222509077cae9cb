"""Run shard jobs on a dask.distributed cluster.

Jobs are pure and idempotent, so what dask does when a worker dies (run its jobs again elsewhere) is right as it is, and
files come out byte-identical to a local run. Workers need this package importable and the same paths (a shared file
system); one thread a worker uses a core fully.

A job under which more workers died than the scheduler allows (3) is taken as their killer. Where machines are taken
away often, start it as ``DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=10 dask scheduler``: that is its process's
setting, and not one for a client to change under the cluster's other users.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neobert.errors import PipelineError
from neobert.jobs import Job, execute

CONNECT_SECONDS = 10
ALLOWED = "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"


def run_on_dask(jobs: list[Job], cache: Path, address: str) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Yield each job and its entry as they finish.

    Raises:
        PipelineError: distributed is not installed, the scheduler cannot be reached, it has no worker, or too many died
            under one job.
    """
    try:
        from distributed import Client, as_completed
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise PipelineError(
            "corpus.engine: dask needs the extra `dask`: pip install 'neobert-pipeline[dask]'"
        ) from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:  # distributed's CommClosedError and TimeoutError are OSErrors
        raise PipelineError(
            f"corpus.scheduler_address: {address!r} cannot be reached ({error}); start it with `dask scheduler`, "
            "or set corpus.engine to local"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise PipelineError(f"corpus.scheduler_address: {address!r} has no worker; start some with `dask worker`")
        futures = {
            client.submit(execute, job, cache, key=f"{job.key}-{job.name}", retries=1, pure=True): job for job in jobs
        }
        try:
            for future, entry in as_completed(list(futures), with_results=True):
                yield futures[future], entry
        except KilledWorker as error:
            shard = next(job.name for future, job in futures.items() if future.key == error.task)
            raise PipelineError(
                f"corpus.engine: dask: {error.allowed_failures + 1} worker(s) died under the shard {shard}, the last "
                f"at {error.last_worker.address}; look for memory in the workers' logs, or, where machines are taken "
                f"away often, start the scheduler as `{ALLOWED}=10 dask scheduler`. Finished shards are kept"
            ) from error
