"""Checkpoints: torch.distributed.checkpoint, saved in the background, whole or absent, and verified before use.

    checkpoints/<step>/   *.distcp, .metadata (DCP)   state.json (host counters)   manifest.json (sha256, written last)

Saving copies the state (pinned and on a stream of its own on a GPU), then writes, hashes, fsyncs and renames in a
thread; one save is in flight, the next waits. Only tensors go through DCP: values of other types would be
pickles. DCP's own `.metadata` is a pickle too, so it is read by an unpickler that knows a dozen names. DCP checks
no payload and fills a template that differs in type or keys without a word, so hashes, keys, shapes and types are
compared here. Cost: the device-to-host copy is the only part training may wait for.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from neobert.errors import PipelineError
from neobert.io import MANIFEST, fsync_directory, read_json, verify_manifest, write_json, write_manifest
from neobert.training.distributed import Workers

log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what we intend
STATE = "state.json"
_TORCH_TYPES = {str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}
_METADATA_NAMES = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *_TORCH_TYPES},
    "pathlib": {"PosixPath", "PurePosixPath", "Path"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "Path"},
}


class _MetadataUnpickler(pickle.Unpickler):
    """Reads DCP's `.metadata`, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _METADATA_NAMES.get(module, ()):
            return super().find_class(module, name)
        raise PipelineError(
            f"checkpoint metadata names {module}.{name}, which no checkpoint of ours holds; it was refused and "
            "nothing in it was run. Delete this checkpoint, or resume from another"
        )


class SafeReader(dcp.FileSystemReader):
    """DCP's file reader with the allow-list unpickler."""

    def entries(self) -> dict[str, TensorStorageMetadata]:
        """Shape and type of every stored tensor, by key."""
        return self.read_metadata().state_dict_metadata  # type: ignore[return-value]  # read_metadata refused others

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The checkpoint's metadata.

        Raises:
            PipelineError: it is missing, damaged, names a class outside the allow-list, or stores pickles.
        """
        path = Path(self.path) / ".metadata"
        try:
            with open(path, "rb") as handle:
                metadata = _MetadataUnpickler(handle).load()
        except (OSError, pickle.UnpicklingError, EOFError, ValueError, IndexError) as error:
            raise PipelineError(f"{path}: cannot be read ({error}); resume from another checkpoint") from error
        pickled = [k for k, v in metadata.state_dict_metadata.items() if not isinstance(v, TensorStorageMetadata)]
        if pickled:
            raise PipelineError(f"{path}: holds pickled values ({', '.join(pickled[:3])}); only tensors are read")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def steps_in(directory: Path) -> list[int]:
    """Steps of the committed checkpoints below `directory`, ascending (a directory without manifest is not one)."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit() and (p / MANIFEST).is_file())


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's host counters, after its every byte was verified.

    Raises:
        PipelineError: a file is missing, truncated or changed.
    """
    verify_manifest(path)
    return read_json(path / STATE)


def load_tensors(path: Path, state: dict[str, Tensor], workers: Workers | None = None) -> None:
    """Fill `state` in place from a verified checkpoint; sharded tensors take their own part.

    Raises:
        PipelineError: keys, shapes or types differ; the message lists them.
    """
    reader = SafeReader(path)
    compare(path, reader.entries(), state)
    group = workers.checkpoint_group if workers else None
    dcp.load(state, storage_reader=reader, process_group=group, no_dist=group is None)


def compare(path: Path, stored: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Refuse a checkpoint whose keys, shapes or types are not `state`'s."""
    problems = [f"{key}: not in the checkpoint" for key in state if key not in stored]
    problems += [f"{key}: only in the checkpoint" for key in stored if key not in state]
    for key in state.keys() & stored.keys():
        mine = (tuple(state[key].shape), state[key].dtype)
        its = (tuple(stored[key].size), stored[key].properties.dtype)
        if mine != its:
            problems.append(f"{key}: {its[0]} {its[1]} in the checkpoint, {mine[0]} {mine[1]} here")
    if problems:
        shown = "\n  ".join(sorted(problems)[:12])
        raise PipelineError(
            f"{path}: does not fit this model and optimizer ({len(problems)} differences):\n  {shown}\n"
            "set runtime.resume_from_checkpoint: false to start anew"
        )


class ReusedStager(DefaultStager):
    """A stager that keeps its pinned buffers for every save of a run.

    torch 2.11 closes the inner stager at the end of each staging, which makes the second one fail; 2.13 does not.
    """

    def __init__(self, options: StagingOptions) -> None:
        super().__init__(options)
        self._free = self._state_dict_stager.close
        self._state_dict_stager.close = lambda: None  # type: ignore[method-assign]

    def release(self) -> None:
        """Free the buffers; after the last save."""
        self.close()
        self._free()


class Checkpointer:
    """Saves into `directory`, one save in flight.

    Args:
        directory: `<scratch>/checkpoints`.
        keep: checkpoints kept; older ones are removed after each commit.
        committed: called in the saving thread, on rank 0, with each committed checkpoint's path.
    """

    def __init__(
        self, directory: Path, workers: Workers, keep: int, committed: Callable[[Path], None] | None = None
    ) -> None:
        self.directory, self.workers, self.keep, self.committed = directory, workers, keep, committed
        gpu = workers.device.type == "cuda"
        # Staged on a GPU while the next step's forward runs: the update waits for it in `before_update`.
        self._stager = ReusedStager(
            StagingOptions(
                use_pinned_memory=gpu,
                use_shared_memory=False,
                use_async_staging=gpu,
                use_non_blocking_copy=gpu,
            )
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        self._staging: Future[None] | None = None
        if workers.is_main:
            directory.mkdir(parents=True, exist_ok=True)
            for left in directory.glob(".saving-*"):  # of a process that died while it saved
                shutil.rmtree(left)
        workers.barrier()

    def save(self, step: int, state: dict[str, Tensor], info: dict[str, Any], *, wait: bool = False) -> None:
        """Start saving `state` and the host counters `info` as `checkpoints/<step>`; `wait` until it is committed.

        Raises:
            PipelineError: the save before this one, or with `wait` this one, failed.
        """
        self.wait()
        # Asked of rank 0, which commits: another rank's wait may end before, and saving is for all ranks or none.
        if self.workers.from_main(step in steps_in(self.directory)):
            return
        temporary = self.directory / f".saving-{step}"
        writer = dcp.FileSystemWriter(temporary, single_file_per_rank=True, sync_files=True, thread_count=1)
        group = self.workers.checkpoint_group
        saving: Any = dcp.async_save(
            state, storage_writer=writer, process_group=group, no_dist=group is None, async_stager=self._stager
        )
        if not isinstance(saving, Future):  # staged in a thread, on a GPU
            self._staging, saving = saving.staging_completion, saving.upload_completion
        self._saving = self._thread.submit(self._commit, saving, temporary, step, info)
        if wait:
            self.wait()

    def before_update(self) -> None:
        """Wait until the state in flight has been copied; weights may change afterwards."""
        if self._staging is not None:
            self._staging.result()
            self._staging = None

    def wait(self) -> None:
        """Wait for the save in flight; raises PipelineError if it failed."""
        self.before_update()
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def failed(self) -> bool:
        """Whether the save in flight has already failed (without waiting)."""
        return self._saving is not None and self._saving.done() and self._saving.exception() is not None

    def close(self) -> None:
        """Wait for the save in flight and stop the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._stager.release()

    def _commit(self, upload: Future[Any], temporary: Path, step: int, info: dict[str, Any]) -> None:
        try:
            upload.result()
            if self.workers.is_main:
                self._publish(temporary, step, info)
        except (OSError, PipelineError, dcp.CheckpointException) as error:
            # CheckpointException is a BaseException, and wraps the write error of whichever rank failed.
            shutil.rmtree(temporary, ignore_errors=True)
            raise PipelineError(
                f"{self.directory / str(step)}: the checkpoint could not be written ({_cause(error)}); earlier "
                "checkpoints are intact. Free space or make it writable, then run the same command again "
                "(with runtime.resume_from_checkpoint: auto where it is false, which starts anew)"
            ) from error
        if self.workers.is_main:  # committed: what fails from here on says so itself, and harms no checkpoint
            if self.committed is not None:
                self.committed(self.directory / str(step))
            self._remove_old()

    def _publish(self, temporary: Path, step: int, info: dict[str, Any]) -> None:
        write_json(temporary / STATE, info)
        write_manifest(temporary, {"step": step})
        fsync_directory(temporary)
        os.rename(temporary, self.directory / str(step))
        fsync_directory(self.directory)
        log.info("saved %s", self.directory / str(step))

    def _remove_old(self) -> None:
        for step in steps_in(self.directory)[: -self.keep]:
            old = self.directory / str(step)
            try:
                # The manifest goes first: a removal that is cut short must not leave something that looks whole.
                (old / MANIFEST).unlink()
                shutil.rmtree(old)
            except OSError as error:
                raise PipelineError(
                    f"{old}: an old checkpoint could not be removed ({error.strerror or error}); newer ones are whole. "
                    "Remove it by hand, then run the same command again"
                ) from error


def _cause(error: BaseException) -> str:
    failures = getattr(error, "failures", None)
    if failures:
        return "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in failures.items())
    if isinstance(error, PipelineError) and error.__cause__ is not None:
        return str(error.__cause__)  # it would name the temporary file, and say what to do about that one
    return str(error)
