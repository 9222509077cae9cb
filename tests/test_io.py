"""Files are whole or absent; a changed byte is found and named."""

import json
import multiprocessing
import os

import pytest

from neobert.errors import PipelineError
from neobert.io import (
    RunLock,
    atomic_path,
    fingerprint,
    read_json,
    read_manifest,
    sha256_file,
    verify_manifest,
    write_json,
    write_manifest,
)


def test_atomic_path_keeps_the_old_file_on_failure(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_write_errors_say_what_to_do(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(PipelineError, match="cannot be written"):
        write_json(blocker / "inside.json", {})


def test_json_is_canonical(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "ä"})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": "ä",\n  "b": 1\n}\n'
    assert read_json(tmp_path / "a.json") == {"a": "ä", "b": 1}
    with pytest.raises(PipelineError, match="does not exist"):
        read_json(tmp_path / "missing.json")


def test_fingerprint_ignores_key_order_only():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes where"),
        (lambda p: p.write_bytes(b"X" + p.read_bytes()[1:]), "sha256 differs"),
    ],
)
def test_manifest_finds_damage(tmp_path, damage, message):
    shard = tmp_path / "sub" / "shard.bin"
    shard.parent.mkdir()
    shard.write_bytes(b"0123456789")
    write_manifest(tmp_path, {"rows": 1, "files": {"sub/shard.bin": {"rows": 1}}})
    manifest = verify_manifest(tmp_path)
    assert manifest["files"]["sub/shard.bin"] == {"rows": 1, "bytes": 10, "sha256": sha256_file(shard)}
    damage(shard)
    with pytest.raises(PipelineError, match=message):
        verify_manifest(tmp_path)


def test_unfinished_directory_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="never finished"):
        read_manifest(tmp_path)


def _try_lock(directory, answers):
    try:
        with RunLock(directory):
            answers.put("got it")
    except PipelineError as error:
        answers.put(str(error))


def test_lock_admits_one_process_and_names_the_other(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with RunLock(tmp_path):
        process = context.Process(target=_try_lock, args=(tmp_path, answers))
        process.start()
        assert f"pid {os.getpid()}" in answers.get(timeout=60)
        process.join()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "owner.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "owner.json").exists()


def test_lock_respects_a_live_owner_on_another_host(tmp_path):
    import time

    write_json(tmp_path / "owner.json", {"host": "elsewhere", "pid": 1, "heartbeat": time.time()})
    with pytest.raises(PipelineError, match="host elsewhere"), RunLock(tmp_path):
        pass
    write_json(tmp_path / "owner.json", {"host": "elsewhere", "pid": 1, "heartbeat": time.time() - 3600})
    with RunLock(tmp_path):
        pass
