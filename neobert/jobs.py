"""Run pure shard functions once each, resumably, and publish their files as a stage's out.

A job is a function of its arguments alone that writes one file; its key is the hash of everything that could change
the file (input hash, params, code). The file is made in ``cache/<key>/`` under a temporary name, fsynced and renamed,
and ``entry.json`` beside it, written last, says that it is finished. So a job may be run twice, on two machines at
once, or after kill -9, with the same result; an interrupted stage keeps its finished shards, and new input costs only
its own. Publishing hard-links the files into the out and writes the manifest last.
"""

import argparse
import ctypes
import importlib
import inspect
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neobert.errors import PipelineError
from neobert.io import MANIFEST, atomic_path, fingerprint, read_json, sha256_file, write_json
from neobert.progress import progress

log = logging.getLogger(__name__)
ENTRY, DATA = "entry.json", "shard"
THREAD_VARIABLES = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")


@dataclass(frozen=True)
class Job:
    """One shard to make.

    Attributes:
        name: the file's path inside the out, e.g. ``train/part-00000.arrow``.
        key: hash of all that the file depends on.
        function: dotted path ``package.module:function``; called as ``function(path, **arguments) -> dict`` with the
            temporary path to write; what it returns goes into the manifest.
        arguments: plain values.
    """

    name: str
    key: str
    function: str
    arguments: dict[str, Any]


def code_hash(*modules: str) -> str:
    """Hash of the sources of ``modules``, for a job's key."""
    sources = []
    for module in modules:
        path = inspect.getsourcefile(importlib.import_module(module))
        sources.append((module, sha256_file(path or "")))
    return fingerprint(sources)


def finished(job: Job, cache: Path) -> dict[str, Any] | None:
    """The entry of a finished job whose file is still whole (by sha256), else ``None``."""
    directory = cache / job.key
    if not (directory / ENTRY).is_file():
        return None
    entry = read_json(directory / ENTRY)
    data = directory / DATA
    # The file shares its inode with DVC's cache: damage there must not be published again and again.
    return entry if data.is_file() and sha256_file(data) == entry["sha256"] else None


def execute(job: Job, cache: Path) -> dict[str, Any]:
    """Run ``job`` unless it is finished; idempotent, safe to run twice at once."""
    entry = finished(job, cache)
    if entry is not None:
        return entry
    module, _, name = job.function.partition(":")
    function: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), name)
    data = cache / job.key / DATA
    with atomic_path(data) as temporary:
        figures = function(temporary, **job.arguments)
    _give_back_memory()
    entry = {**figures, "bytes": data.stat().st_size, "sha256": sha256_file(data)}
    write_json(cache / job.key / ENTRY, entry)
    return entry


@dataclass(frozen=True)
class Engine:
    """Where jobs run; it cannot change their results.

    Attributes:
        workers: local processes; ``None`` for one a core.
        scheduler_address: of a dask.distributed cluster to run on instead, whose workers see the same files.
        rank, world: run only every ``world``-th job from ``rank`` on, and publish nothing (one task of a Slurm array);
            a run without them then finds all jobs finished, and publishes.
    """

    workers: int | None = None
    scheduler_address: str | None = None
    rank: int = 0
    world: int = 1

    @classmethod
    def from_command_line(cls, argv: list[str], scheduler_address: str | None) -> "Engine":
        """A stage's engine: ``--rank R --world W`` runs a share of its shards (one task of a Slurm array).

        Raises:
            PipelineError: the rank is not one of the world.
        """
        parser = argparse.ArgumentParser()
        parser.add_argument("--rank", type=int, default=0)
        parser.add_argument("--world", type=int, default=1)
        args = parser.parse_args(argv)
        if not 0 <= args.rank < args.world:
            raise PipelineError(f"--rank {args.rank} must be from 0 to --world - 1 ({args.world - 1})")
        return cls(scheduler_address=scheduler_address, rank=args.rank, world=args.world)

    @property
    def partial(self) -> bool:
        return self.world > 1


def _give_back_memory() -> None:
    """Return what a job freed to the system: glibc keeps it otherwise, in pieces, and a worker grows job by job."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def run_jobs(jobs: list[Job], cache: Path, description: str, engine: Engine) -> dict[str, dict[str, Any]]:
    """Run what is not finished yet.

    Returns:
        The entry of each job (of this rank's share), by name.
    """
    cache = cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    jobs = jobs[engine.rank :: engine.world]
    entries = {job.name: entry for job in jobs if (entry := finished(job, cache)) is not None}
    left = [job for job in jobs if job.name not in entries]
    if entries and left:
        log.info("%s: %d of %d shards are finished already", description, len(entries), len(jobs))
    with progress(description, len(jobs), "shards") as counter:
        counter.advance(len(entries))
        for job, entry in _run(left, cache, engine):
            entries[job.name] = entry
            counter.advance()
    return {job.name: entries[job.name] for job in jobs}


def _run(jobs: list[Job], cache: Path, engine: Engine) -> Iterator[tuple[Job, dict[str, Any]]]:
    if engine.scheduler_address is not None and jobs:
        from neobert.dask_engine import run_on_dask

        yield from run_on_dask(jobs, cache, engine.scheduler_address)
    else:
        yield from _local(jobs, cache, min(engine.workers or len(os.sched_getaffinity(0)), max(len(jobs), 1)))


def _local(jobs: list[Job], cache: Path, count: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    if count <= 1:
        for job in jobs:
            yield job, execute(job, cache)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=one_thread_each) as pool:
        futures = {pool.submit(execute, job, cache): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def one_thread_each() -> None:
    """In a worker: keep libraries to one thread, where the user has not said otherwise."""
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, "false" if variable == "TOKENIZERS_PARALLELISM" else "1")


def publish(entries: dict[str, dict[str, Any]], jobs: list[Job], cache: Path, out: Path, extra: dict[str, Any]) -> None:
    """Make ``out`` from finished jobs: hard links (copies across file systems), the manifest last.

    Args:
        extra: further keys of the manifest.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for job in jobs:
        target = out / job.name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = cache / job.key / DATA
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, target)
    write_json(out / MANIFEST, {**extra, "files": entries})
