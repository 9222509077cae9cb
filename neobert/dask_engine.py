"""Run shard jobs on a dask.distributed cluster.

Jobs are pure and idempotent, so what dask does when a worker dies (run its jobs again elsewhere) is right as it is, and
files come out byte-identical to a local run. Workers need this package importable and the same paths (a shared file
system); one thread a worker uses a core fully.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neobert.errors import PipelineError
from neobert.jobs import Job, execute

CONNECT_SECONDS = 10
DEATHS_PER_JOB = 10  # workers that may die under a job before it is taken as their killer (dask's default is 3)


def run_on_dask(jobs: list[Job], cache: Path, address: str) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Yield each job and its entry as they finish.

    Raises:
        PipelineError: distributed is not installed, the scheduler cannot be reached, or it has no worker.
    """
    try:
        import dask
        from distributed import Client, as_completed
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
    with client, dask.config.set({"distributed.scheduler.allowed-failures": DEATHS_PER_JOB}):
        if not client.scheduler_info()["workers"]:
            raise PipelineError(f"corpus.scheduler_address: {address!r} has no worker; start some with `dask worker`")
        futures = {
            client.submit(execute, job, cache, key=f"{job.key}-{job.name}", retries=1, pure=True): job for job in jobs
        }
        for future, entry in as_completed(list(futures), with_results=True):
            yield futures[future], entry
