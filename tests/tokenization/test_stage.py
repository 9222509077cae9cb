"""Token shards: bytes that depend on nothing but their input, by any engine, through any interruption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL

import pyarrow.parquet as pq
import pytest

from neobert.config.corpus import CorpusConfig
from neobert.corpus.build import write_corpus
from neobert.errors import PipelineError
from neobert.io import read_manifest
from neobert.jobs import Engine, Job, run_jobs
from neobert.packing.pack import read_tokens
from neobert.tokenization.__main__ import main
from neobert.tokenization.stage import tokenize
from neobert.tokenization.tokenizer import open_tokenizer
from tests.tokenization.conftest import TEXTS

ONE = Engine(workers=1)


def hashes(out: Path) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in read_manifest(out)["files"].items()}


def test_ids_are_the_tokenizers(corpus, tokenizer, tmp_path):
    totals = tokenize(corpus, tokenizer, tmp_path / "tokens", tmp_path / "cache", ONE)
    rust, info = open_tokenizer(tokenizer)
    rust.encode_special_tokens = True
    tokens = 0
    for name in read_manifest(corpus)["files"]:
        texts = pq.read_table(corpus / name).column("text").to_pylist()
        flat, lengths = read_tokens(tmp_path / "tokens" / Path(name).with_suffix(".arrow"))
        expected = [rust.encode(text, add_special_tokens=False).ids for text in texts]
        assert lengths.tolist() == [len(ids) for ids in expected]
        assert flat.tolist() == [i for ids in expected for i in ids]
        tokens += len(flat)
    assert totals["tokens"] == tokens
    assert read_manifest(tmp_path / "tokens")["tokenizer"] == info.as_dict()


def test_workers_and_ranks_give_the_same_files(corpus, tokenizer, tmp_path):
    tokenize(corpus, tokenizer, tmp_path / "one", tmp_path / "cache1", ONE)
    tokenize(corpus, tokenizer, tmp_path / "two", tmp_path / "cache2", Engine(workers=2))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    for rank in range(2):
        assert tokenize(corpus, tokenizer, tmp_path / "three", tmp_path / "cache3", Engine(rank=rank, world=2)) == {}
    assert not (tmp_path / "three").exists(), "ranks publish nothing"
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache3").glob("*/shard")}
    tokenize(corpus, tokenizer, tmp_path / "three", tmp_path / "cache3", ONE)
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache3").glob("*/shard")}
    assert hashes(tmp_path / "one") == hashes(tmp_path / "three")


def test_a_new_file_costs_its_own_shards(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("neobert.corpus.shards.TOGETHER", len(TEXTS) // 2)  # files of more end their shard

    def build(names):
        for name in names:
            (tmp_path / f"{name}.txt").write_text("\n".join(f"{text!r} {name} {i}" for i, text in enumerate(TEXTS)))
        config = CorpusConfig(source="files", files=[str(tmp_path / "*.txt")], text_documents="line")
        write_corpus(config, tmp_path / "corpus")
        tokenize(tmp_path / "corpus", tokenizer, tmp_path / "tokens", tmp_path / "cache", ONE)
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*/shard")}

    first = build(["b", "d"])
    second = build(["a", "b", "c", "d"])
    assert first.items() <= second.items(), "finished shards were neither remade nor lost"
    trains = [name for name in read_manifest(tmp_path / "tokens")["files"] if name.startswith("train/")]
    assert len(trains) == 4
    assert len(second) - len(first) <= 3, "two new files, and validation that grew"


def test_texts_without_tokens_are_left_out_and_an_empty_result_is_refused(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\u200b\nfine\n\x00\x01\n")
    config = CorpusConfig(
        source="files", files=[str(tmp_path / "a.txt")], text_documents="line", validation_fraction=1e-6
    )
    write_corpus(config, tmp_path / "corpus")
    totals = tokenize(tmp_path / "corpus", tokenizer, tmp_path / "tokens", tmp_path / "cache", ONE)
    assert (totals["documents"], totals["without_tokens"]) == (1, 2)
    (tmp_path / "a.txt").write_text("\u200b\n")
    write_corpus(config, tmp_path / "corpus")
    with pytest.raises(PipelineError, match="no document yields a token"):
        tokenize(tmp_path / "corpus", tokenizer, tmp_path / "tokens", tmp_path / "cache", ONE)


def command(tmp_path, tokenizer, *more):
    files = ["--dataset", str(tmp_path / "*.jsonl"), "--output", str(tmp_path / "out"), "--tokenizer", str(tokenizer)]
    return [*files, "--documents-per-shard", "20", *more]


def write_jsonl(tmp_path):
    rows = "".join(json.dumps({"text": f"{text} {i}"}) + "\n" for i, text in enumerate(TEXTS * 10))
    (tmp_path / "a.jsonl").write_text(rows)


def test_standalone_by_ranks_equals_one_run(tokenizer, tmp_path):
    write_jsonl(tmp_path)
    with pytest.raises(PipelineError, match="--prepare"):
        main(command(tmp_path, tokenizer, "--rank", "0", "--world", "2"))
    main(command(tmp_path, tokenizer, "--prepare"))
    for rank in ("0", "1"):
        main(command(tmp_path, tokenizer, "--rank", rank, "--world", "2"))
    totals = main(command(tmp_path, tokenizer, "--max-length", "64", "--num-workers", "1"))
    assert totals["packed"]["train"]["rows"] > 10
    whole = command(tmp_path, tokenizer, "--max-length", "64", "--num-workers", "1")
    whole[whole.index("--output") + 1] = str(tmp_path / "whole")
    main(whole)
    for part in ("tokens", "packed/train"):
        assert hashes(tmp_path / "out" / part) == hashes(tmp_path / "whole" / part)


def request(tmp_path, name, tokenizer, *more):
    """The command for one file ``name``.jsonl, which it writes where it is not there."""
    file = tmp_path / f"{name}.jsonl"
    if not file.is_file():
        file.write_text("".join(json.dumps({"text": f"{text} {name} {i}"}) + "\n" for i, text in enumerate(TEXTS)))
    outputs = ["--output", str(tmp_path / "out"), "--tokenizer", str(tokenizer), "--num-workers", "1"]
    return ["--dataset", str(file), *outputs, *more]


def test_standalone_a_refused_request_leaves_the_earlier_result(tokenizer, tmp_path):
    main(request(tmp_path, "a", tokenizer, "--max-length", "64"))
    parts = [tmp_path / "out" / name for name in ("corpus", "tokens", "packed/train")]
    before = {part: (hashes(part), (part / "manifest.json").stat().st_mtime_ns) for part in parts}
    (tmp_path / "empty").mkdir()
    with pytest.raises(PipelineError, match=r"empty' cannot be loaded"):
        main(request(tmp_path, "b", tmp_path / "empty"))
    with pytest.raises(PipelineError, match=r"packing\.max_length: 4 must be at least 8"):
        main(request(tmp_path, "b", tokenizer, "--max-length", "4"))
    assert before == {part: (hashes(part), (part / "manifest.json").stat().st_mtime_ns) for part in parts}


def test_standalone_a_new_request_leaves_nothing_of_the_earlier_one(tokenizer, tmp_path, monkeypatch):
    main(request(tmp_path, "a", tokenizer, "--max-length", "64"))
    first = hashes(tmp_path / "out" / "tokens")
    main(request(tmp_path, "b", tokenizer))
    assert hashes(tmp_path / "out" / "tokens") != first
    assert not (tmp_path / "out" / "packed").exists(), "rows of a beside tokens of b"

    def killed(*arguments):
        write_corpus(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("neobert.tokenization.__main__.write_corpus", killed)  # a's corpus is there, but not committed
        main(request(tmp_path, "a", tokenizer))
    main(request(tmp_path, "b", tokenizer))
    assert [entry["source"] for entry in read_manifest(tmp_path / "out" / "tokens")["files"].values()] == [
        str(tmp_path / "b.jsonl")
    ] * len(first)


def test_standalone_reads_changed_local_folders_anew(tokenizer, tmp_path):
    texts, own = tmp_path / "texts", tmp_path / "tokenizer"
    texts.mkdir()
    shutil.copytree(tokenizer, own)
    (own / "model.safetensors").write_bytes(b"weights")
    arguments = request(tmp_path, "texts/a", own)
    arguments[1] = str(texts)
    made = []

    def run():
        main(arguments)
        made.append((read_manifest(tmp_path / "out" / "tokens"), (tmp_path / "out" / "request.json").read_text()))
        return made[-1][0]

    first = run()
    (own / "model.safetensors").write_bytes(b"other weights")
    run()
    assert made[0] == made[1], "weights are no part of a tokenizer"
    request(tmp_path, "texts/b", own)
    assert run()["documents"] == 2 * first["documents"]
    values = json.loads((own / "tokenizer.json").read_text())
    values["normalizer"] = {"type": "Lowercase"}
    (own / "tokenizer.json").write_text(json.dumps(values))
    assert run()["tokenizer"]["sha256"] != first["tokenizer"]["sha256"]


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["corpus", "tokens", "packed", "tokenizer"])
def test_standalone_leaves_folders_that_it_did_not_write(tokenizer, tmp_path, name):
    """The pipeline's own ``data/``, or a user's folder that happens to have such a name."""
    own = tmp_path / "out" / name
    own.mkdir(parents=True)
    (own / "precious").write_text("mine")
    arguments = request(tmp_path, "a", tokenizer)
    before = files_under(tmp_path)
    with pytest.raises(PipelineError, match=rf"--output: .*/out holds {name} and no request\.json of this"):
        main(arguments)
    assert files_under(tmp_path) == before
    shutil.rmtree(own)
    (tmp_path / "out" / "request.json").write_text('{"model": "mine"}')
    with pytest.raises(PipelineError, match=r"out holds request\.json and no request\.json of this"):
        main(arguments)


def test_standalone_refuses_inputs_inside_what_it_replaces(tokenizer, tmp_path):
    main(request(tmp_path, "a", tokenizer))
    out = tmp_path / "out"
    shutil.copytree(tokenizer, tmp_path / "kept")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.jsonl").write_text('{"text": "fine"}\n')
    (out / "corpus" / "linked.jsonl").symlink_to(tmp_path / "texts" / "b.jsonl")
    (tmp_path / "alias").symlink_to(out / "corpus")
    before = files_under(tmp_path)
    for dataset, loaded, message in (
        (out / "corpus" / "train" / "*.parquet", tmp_path / "kept", "--dataset: .*parquet lies in .*out/corpus"),
        (out / "corpus" / "linked.jsonl", tmp_path / "kept", "--dataset: .*linked.jsonl lies in .*out/corpus"),
        (tmp_path / "alias" / "train" / "*.parquet", tmp_path / "kept", "--dataset: .*parquet lies in .*out/corpus"),
        (out / "corpus", tmp_path / "kept", "--dataset: .*corpus lies in .*out/corpus"),
        (out, tmp_path / "kept", "--dataset: .*out holds .*out/corpus"),
        (tmp_path / "a.jsonl", out / "tokenizer", "--tokenizer: .*tokenizer lies in .*out/tokenizer"),
    ):
        arguments = request(tmp_path, "a", loaded)
        arguments[1] = str(dataset)
        with pytest.raises(PipelineError, match=message):
            main(arguments)
        assert files_under(tmp_path) == before


def test_standalone_errors_are_one_line(tokenizer, tmp_path):
    for arguments, message in (
        (["--rank", "2", "--world", "2"], "--rank 2"),
        (["--max-document-bytes", "0"], r"corpus.max_document_bytes: 0"),
        ([], "matches no file"),
    ):
        run = subprocess.run(
            [sys.executable, "-m", "neobert.tokenization", *command(tmp_path, tokenizer, *arguments)],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 1
        assert message in run.stderr
        assert "Traceback" not in run.stderr


CLUSTER = """
import sys, logging
from pathlib import Path
from neobert.jobs import Engine
from neobert.tokenization.stage import tokenize
corpus, tokenizer, out, cache, address = sys.argv[1:]
tokenize(Path(corpus), Path(tokenizer), Path(out), Path(cache), Engine(scheduler_address=address))
"""


@contextmanager
def cluster(folder: Path, workers: int, **variables: str):
    """A scheduler and workers, each a process of its own on loopback; yields a function to start another program on it.

    Args:
        variables: of the scheduler's environment.
    """
    scheduler_file = folder / "scheduler.json"
    loopback = ["--host", "127.0.0.1", "--no-dashboard"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    scheduler = ["distributed.cli.dask_scheduler", "--port", "0", "--scheduler-file", str(scheduler_file), *loopback]
    worker = ["distributed.cli.dask_worker", "--scheduler-file", str(scheduler_file), "--nthreads", "1", "--no-nanny"]
    processes = []

    def start(arguments, **more):
        process = subprocess.Popen([sys.executable, *map(str, arguments)], env={**environment, **more}, stderr=DEVNULL)
        processes.append(process)
        return process

    try:
        start(["-m", *scheduler], **variables)
        wait(lambda: scheduler_file.is_file() and scheduler_file.read_text().strip().endswith("}"))
        address = json.loads(scheduler_file.read_text())["address"]
        started = [start(["-m", *worker, *loopback]) for _ in range(workers)]
        time.sleep(0.5)
        wait(lambda: len(connected(address)) == workers)
        yield address, started, start
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_dask_with_a_killed_worker_gives_the_same_files(tokenizer, tmp_path):
    """One of three workers is killed when the first shards are there."""
    pytest.importorskip("distributed")
    write_jsonl(tmp_path)
    config = CorpusConfig(source="files", files=[str(tmp_path / "*.jsonl")], documents_per_shard=4)
    write_corpus(config, tmp_path / "corpus")
    tokenize(tmp_path / "corpus", tokenizer, tmp_path / "local", tmp_path / "cache_local", ONE)
    cache = tmp_path / "cache_dask"
    with cluster(tmp_path, workers=3) as (address, workers, start):
        client = start(["-c", CLUSTER, tmp_path / "corpus", tokenizer, tmp_path / "dask", cache, address])
        wait(lambda: any(cache.glob("*/entry.json")))
        workers[0].send_signal(signal.SIGKILL)
        shards = read_manifest(tmp_path / "local")["files"]
        assert len(list(cache.glob("*/entry.json"))) < len(shards), "there was work left when it died"
        assert client.wait(timeout=60) == 0
    assert hashes(tmp_path / "dask") == hashes(tmp_path / "local")


def die_once(path: Path, died: str) -> dict:
    """A job's function that takes the first worker down."""
    if not Path(died).exists():
        Path(died).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    path.write_text("made")
    return {}


@pytest.mark.parametrize("allowed", [0, 1])
def test_how_many_workers_may_die_under_a_shard_is_the_schedulers_to_say(tmp_path, allowed):
    pytest.importorskip("distributed")
    job = Job("part-00000", "key", f"{__name__}:die_once", {"died": str(tmp_path / "died")})
    allow = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed)}
    with cluster(tmp_path, workers=2, **allow) as (address, _, _):
        if allowed:
            assert set(run_jobs([job], tmp_path, "die", Engine(scheduler_address=address))) == {"part-00000"}
            return
        message = rf"dask: 1 worker\(s\) died under the shard part-00000, .*{next(iter(allow))}=10 dask scheduler"
        with pytest.raises(PipelineError, match=message):
            run_jobs([job], tmp_path, "die", Engine(scheduler_address=address))


def connected(address: str) -> dict:
    from distributed import Client

    with Client(address, timeout=10) as client:
        return client.scheduler_info(n_workers=-1)["workers"]


def wait(ready, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_cluster_that_is_not_there_is_one_line(corpus, tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("neobert.dask_engine.CONNECT_SECONDS", 0.5)
    with pytest.raises(PipelineError, match=r"corpus\.scheduler_address: 'tcp://127\.0\.0\.1:9' cannot be reached"):
        engine = Engine(scheduler_address="tcp://127.0.0.1:9")
        tokenize(corpus, tokenizer, tmp_path / "tokens", tmp_path / "cache", engine)


def test_engine_keys_go_together():
    assert list(CorpusConfig(engine="dask").problems())
    assert list(CorpusConfig(scheduler_address="tcp://a:1").problems())
    assert not list(CorpusConfig(engine="dask", scheduler_address="tcp://a:1").problems())
