"""Files over HTTP, from hosts that serve ranges and hosts that only stream."""

import gzip
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neobert.config.corpus import CorpusConfig
from neobert.corpus.build import write_corpus
from neobert.errors import PipelineError

TEXTS = [f"document {number} of some words" for number in range(300)]
JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
PIECE = 5000  # bytes that a streaming host sends at once


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), sink)
    return sink.getvalue()


FILES = {
    "/a.jsonl": JSONL,
    "/a.jsonl.gz": gzip.compress(JSONL),
    "/a.jsonl.zst": pa.compress(JSONL, codec="zstd", asbytes=True),
    "/a.txt": "\n\n".join(TEXTS).encode(),
    "/a.parquet": parquet(),
    "/a": JSONL,
}


class Ranges(BaseHTTPRequestHandler):
    """Content-Length and Range, as object stores serve."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.serve(body=False)

    def do_GET(self) -> None:
        self.serve(body=True)

    def serve(self, body: bool) -> None:
        data = FILES[self.path.partition("?")[0]]
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2] or len(data) - 1)) if asked else (0, len(data) - 1)
        part = data[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(part)


class Streams(Ranges):
    """Chunked, in pieces, without a length or ranges, as programs that write their answer as they go."""

    def serve(self, body: bool) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if not body:
            return
        data = FILES[self.path.partition("?")[0]]
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            time.sleep(0.01)  # so that the client sees the pieces apart
        self.end()

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")


class BreaksOff(Streams):
    """A stream whose connection is lost."""

    def end(self) -> None:
        self.close_connection = True


@pytest.fixture(params=[Ranges, Streams])
def host(request) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), request.param)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def read(tmp_path, url, text_documents="file"):
    config = CorpusConfig(source="files", files=[url], text_documents=text_documents, validation_fraction=0.001)
    manifest = write_corpus(config, tmp_path / "corpus")
    tables = [pq.read_table(tmp_path / "corpus" / name) for name in manifest["files"]]
    return sorted(text for table in tables for text in table["text"].to_pylist())


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_lines(tmp_path, host, name):
    """fsspec's remote files have a readline without a limit, and its streams read short."""
    assert read(tmp_path, f"{host}/{name}") == sorted(TEXTS)


@pytest.mark.parametrize("query", ["?download=true", "?X-Amz-Signature=a%2Fb.c&X-Amz-Date=[1]"])
def test_the_ending_is_the_path_s_and_not_the_query_s(tmp_path, host, query):
    assert read(tmp_path, f"{host}/a.jsonl.gz{query}") == sorted(TEXTS)
    with pytest.raises(PipelineError, match="none of the endings"):
        read(tmp_path, f"{host}/a?name=a.jsonl")


def test_text_is_read_to_its_end_in_every_unit(tmp_path, host):
    whole = FILES["/a.txt"].decode()
    assert len(whole) > PIECE
    assert read(tmp_path, f"{host}/a.txt") == [whole]
    assert read(tmp_path, f"{host}/a.txt", "line") == sorted(TEXTS)
    assert read(tmp_path, f"{host}/a.txt", "paragraph") == sorted(TEXTS)


@pytest.mark.parametrize("host", [Ranges], indirect=True)
def test_parquet_is_sought_in(tmp_path, host):
    assert read(tmp_path, f"{host}/a.parquet") == sorted(TEXTS)


@pytest.mark.parametrize("host", [BreaksOff], indirect=True)
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_lost_connection_is_no_shorter_document(tmp_path, host, name):
    with pytest.raises(PipelineError, match=rf"/{re.escape(name)}: cannot be read: "):
        read(tmp_path, f"{host}/{name}")
