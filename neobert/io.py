"""Files that are either whole or absent: atomic writes, JSON, sha256 manifests, fingerprints, a run lock.

Algorithm: a file is written under a temporary name in its own directory, flushed to disk and renamed; a directory
of files is committed by a ``manifest.json`` written last, which holds each file's size and sha256. Cost: one fsync
a file and one read of every byte for a verification (about 1.5 GB/s a core).
"""

import fcntl
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from neobert.errors import PipelineError

MANIFEST = "manifest.json"
HEARTBEAT_SECONDS = 15.0


def runs_dir() -> Path:
    """Untracked scratch of running stages; ``NEOBERT_RUNS_DIR`` moves it (to a larger or shared disk)."""
    return Path(os.environ.get("NEOBERT_RUNS_DIR", "runs"))


def fsync_directory(path: Path) -> None:
    """Make renames inside ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def clear_write_errors(path: str | Path) -> Iterator[None]:
    """Turn a failed write inside into one clear line about ``path``.

    Raises:
        PipelineError: the disk is full or ``path`` cannot be written (safetensors has an error type of its own).
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise PipelineError(
            f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}); "
            f"free space or make {Path(path).parent} writable, then run the same command again"
        ) from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success fsync it and rename it, on failure remove it.

    Raises:
        PipelineError: the directory cannot be written or the disk is full; ``path`` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with clear_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            fsync_directory(path.parent)
    finally:
        if temporary.exists():
            temporary.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` atomically as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` atomically as JSON: sorted keys, two spaces, a final newline, so equal values are equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        PipelineError: the file is missing or does not parse.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PipelineError(f"{path}: does not exist; run `dvc repro` for the stage that makes it") from error
    except ValueError as error:
        raise PipelineError(f"{path}: is not JSON ({error}); delete it and run `dvc repro`") from error


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Hex sha256 of ``value`` as canonical JSON: equal values have equal fingerprints on every machine."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_manifest(directory: str | Path, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Commit ``directory``: write ``manifest.json`` last, with bytes and sha256 of every other file below it.

    Args:
        directory: the finished directory.
        extra: further keys of the manifest; ``{"files": {name: {...}}}`` adds per-file figures.

    Returns:
        The manifest as written.
    """
    directory = Path(directory)
    extra = dict(extra or {})
    details = extra.pop("files", {})
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    files = {
        name: {
            **details.get(name, {}),
            "bytes": (directory / name).stat().st_size,
            "sha256": sha256_file(directory / name),
        }
        for name in names
        if name != MANIFEST
    }
    manifest = {**extra, "files": files}
    write_json(directory / MANIFEST, manifest)
    return manifest


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a finished directory.

    Raises:
        PipelineError: there is none, so the directory was never finished.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise PipelineError(f"{path}: missing, so {directory} was never finished; run `dvc repro` to make it")
    return read_json(path)


def verify_manifest(directory: str | Path) -> dict[str, Any]:
    """Check size and sha256 of every file that the manifest of ``directory`` lists, and return the manifest.

    Raises:
        PipelineError: a file is missing, truncated or changed; the message names it.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise PipelineError(f"{path}: is listed in {MANIFEST} but missing; delete {directory} and run `dvc repro`")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise PipelineError(
                f"{path}: has {size} bytes where {MANIFEST} says {expected['bytes']}; "
                f"delete {directory} and run `dvc repro`"
            )
        if sha256_file(path) != expected["sha256"]:
            raise PipelineError(
                f"{path}: its sha256 differs from {MANIFEST} (bytes changed on disk); "
                f"delete {directory} and run `dvc repro`"
            )
    return manifest


class RunLock:
    """One process at a time in a directory: flock, plus an owner file (host, pid, heartbeat) for people and for hosts
    that share a filesystem without flock.

    Usage: ``with RunLock(scratch): ...``.

    Raises:
        PipelineError: another live process holds it; the message names its host and pid.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.owner_path = self.directory / "owner.json"
        self._stop = threading.Event()

    def __enter__(self) -> "RunLock":
        self.directory.mkdir(parents=True, exist_ok=True)
        self._handle = open(self.directory / ".lock", "a+")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._handle.close()
            raise PipelineError(self._busy_message()) from error
        if self._owned_elsewhere():
            self._handle.close()
            raise PipelineError(self._busy_message())
        self._beat()
        self._thread = threading.Thread(target=self._heartbeat, name="run-lock-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self.owner_path.unlink(missing_ok=True)
        self._handle.close()

    def _owner(self) -> dict[str, Any]:
        try:
            return json.loads(self.owner_path.read_text())
        except (FileNotFoundError, ValueError):  # no owner yet, or one that died while it wrote
            return {}

    def _owned_elsewhere(self) -> bool:
        """A live owner on another host, where flock may not reach; on this host flock has already decided."""
        owner = self._owner()
        fresh = time.time() - owner.get("heartbeat", 0.0) < 4 * HEARTBEAT_SECONDS
        return bool(owner) and owner.get("host") != socket.gethostname() and fresh

    def _busy_message(self) -> str:
        owner = self._owner()
        return (
            f"{self.directory}: another run is at work here (host {owner.get('host', '?')}, "
            f"pid {owner.get('pid', '?')}); wait for it or stop it, then run the same command again"
        )

    def _beat(self) -> None:
        write_json(self.owner_path, {"host": socket.gethostname(), "pid": os.getpid(), "heartbeat": time.time()})

    def _heartbeat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with suppress(PipelineError):  # a full disk: the training says so itself, and may recover
                self._beat()
