"""Users' files: every format, and every way in which they can be wrong."""

import bz2
import gzip
import json
import lzma
import random
import re

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import neobert.corpus.shards as corpus_shards
from neobert.config.corpus import CorpusConfig, HubDataset
from neobert.config.schema import parse
from neobert.corpus.build import write_corpus
from neobert.errors import PipelineError
from neobert.io import read_manifest


def build(tmp_path, files, **options):
    config = CorpusConfig(source="files", files=[str(f) for f in files], **{"validation_fraction": 0.001, **options})
    manifest = write_corpus(config, tmp_path / "corpus", tmp_path / "embedded")
    rows = [row for name in manifest["files"] for row in pq.read_table(tmp_path / "corpus" / name).to_pylist()]
    return sorted(row["text"] for row in rows), manifest


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_formats_globs_and_compression(tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two é"}])
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as handle:
        handle.write('{"text": "three"}\n\n')
    pq.write_table(pa.table({"text": ["four", "five"], "other": [1, 2]}), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("six\nseven\n")
    texts, manifest = build(tmp_path, [tmp_path / "*.jsonl*", tmp_path / "c.parquet", tmp_path / "d.txt"])
    assert texts == sorted(["one", "two é", "three", "four", "five", "six\nseven\n"])
    assert manifest["sources"] == [str(tmp_path / "*.jsonl*"), str(tmp_path / "c.parquet"), str(tmp_path / "d.txt")]
    assert len(manifest["files"]) == 3, "each source begins a shard"
    assert read_manifest(tmp_path / "embedded")["files"] == {}


def zstd(data: bytes) -> bytes:
    with pa.BufferOutputStream() as sink:
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()


def test_zstd_is_read_in_every_format(tmp_path):
    """It is promised, and must not need a package that is not installed."""
    lines = b"".join(b'{"text": "row %d"}\n' % number for number in range(3000))
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(lines) + zstd(b'{"text": "of a second frame"}\n'))
    (tmp_path / "b.txt.zst").write_bytes(zstd(b"one\ntwo\n"))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["four", "five"]}), sink)
    (tmp_path / "c.parquet.zst").write_bytes(zstd(sink.getvalue().to_pybytes()))
    texts, _ = build(tmp_path, [tmp_path / "a.jsonl.zst"])
    assert texts == sorted([f"row {number}" for number in range(3000)] + ["of a second frame"])
    assert build(tmp_path, [tmp_path / "*.txt.zst"], text_documents="line")[0] == ["one", "two"]
    assert build(tmp_path, [tmp_path / "c.parquet.zst"])[0] == ["five", "four"]


@pytest.mark.parametrize("ending", ["gz", "zst", "bz2", "xz"])
def test_damaged_compressed_files_are_named(tmp_path, ending):
    lines = b"".join(b'{"text": "%s"}\n' % str(random.Random(n).random()).encode() for n in range(20_000))
    packed = {"gz": gzip.compress, "zst": zstd, "bz2": bz2.compress, "xz": lzma.compress}[ending](lines)
    path = tmp_path / f"a.jsonl.{ending}"
    middle = len(packed) // 2
    for damaged in (packed[:middle], packed[:middle] + bytes(64) + packed[middle + 64 :], b"no such format at all"):
        path.write_bytes(damaged)
        with pytest.raises(
            PipelineError, match=rf"a\.jsonl\.{ending}: cannot be read: |a\.jsonl\.{ending}:\d+: is not"
        ):
            build(tmp_path, [path])


def test_files_of_one_document_share_shards_and_a_new_one_costs_one_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_shards, "TOGETHER", 8)
    for number in range(100):
        (tmp_path / f"{number:03d}.txt").write_text(f"document {number}")

    def shards():
        texts, manifest = build(tmp_path, [tmp_path / "*.txt"])
        train = {entry["sha256"] for name, entry in manifest["files"].items() if name.startswith("train/")}
        return texts, train

    texts, first = shards()
    assert texts == sorted(f"document {number}" for number in range(100))
    assert 5 <= len(first) <= 30, "about one in eight files begins a shard"
    (tmp_path / "0505.txt").write_text("in between")
    texts, second = shards()
    assert len(texts) == 101
    assert len(first - second) <= 1, "all shards but one are as they were"
    jsonl(tmp_path / "z.jsonl", [{"text": "one"}, {"text": "two"}])
    manifest = build(tmp_path, [tmp_path / "*.txt", tmp_path / "z.jsonl"])[1]
    assert second < {entry["sha256"] for entry in manifest["files"].values()}, "another source begins a shard"


def train_shards(tmp_path, pattern, **options):
    manifest = build(tmp_path, [tmp_path / pattern], **options)[1]
    return [entry for name, entry in manifest["files"].items() if name.startswith("train/")]


def test_files_of_few_documents_fill_shards(tmp_path):
    """A shard is the window that packing plans: 300 shards of three documents packed to 0.13 of their rows."""
    for number in range(300):
        jsonl(tmp_path / f"{number:03d}.jsonl", [{"text": f"document {number}.{part}"} for part in range(3)])
    shards = train_shards(tmp_path, "*.jsonl")
    assert len(shards) <= 3
    assert sum(shard["documents"] for shard in shards) >= 890


def test_what_ends_a_shard_is_not_what_makes_validation(tmp_path, monkeypatch):
    """Both are said by the same hash: a training file of one document must still be able to end a shard."""
    monkeypatch.setattr(corpus_shards, "TOGETHER", 8)
    for number in range(200):
        (tmp_path / f"{number:03d}.txt").write_text(f"document {number}")
    assert 6 <= len(train_shards(tmp_path, "*.txt", validation_fraction=0.5)) <= 25


@pytest.mark.parametrize("limit", ["TOGETHER", "TOGETHER_BYTES"])
@pytest.mark.parametrize("new", ["00", "1505", "299x"])
def test_one_more_small_file_costs_one_shard(tmp_path, monkeypatch, limit, new):
    """Whether documents or bytes end a shard, and wherever the file sorts."""
    monkeypatch.setattr(corpus_shards, limit, {"TOGETHER": 30, "TOGETHER_BYTES": 30 * 14}[limit])
    for number in range(300):
        rows = [{"text": f"document {number:03d}{part}"} for part in range(1 + number % 5)]
        jsonl(tmp_path / f"{number:03d}.jsonl", rows)
    first = {shard["sha256"] for shard in train_shards(tmp_path, "*.jsonl")}
    assert 15 <= len(first) <= 45, "about one in thirty documents ends a shard"
    jsonl(tmp_path / f"{new}.jsonl", [{"text": f"in between {part}"} for part in range(3)])
    second = {shard["sha256"] for shard in train_shards(tmp_path, "*.jsonl")}
    assert len(first - second) <= 1, "all shards but one are as they were"


@pytest.mark.parametrize("limit", ["TOGETHER", "TOGETHER_BYTES"])
def test_a_large_file_ends_its_shard(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(corpus_shards, limit, {"TOGETHER": 20, "TOGETHER_BYTES": 20 * 10}[limit])
    for name in "abcd":
        jsonl(tmp_path / f"{name}.jsonl", [{"text": f"document {name}{part}"} for part in range(20)])
    assert [shard["documents"] for shard in train_shards(tmp_path, "*.jsonl")] == [20] * 4


@pytest.mark.parametrize("limit", ["documents_per_shard", "SHARD_BYTES"])
def test_a_large_file_is_cut_alike_whatever_small_files_come_before_it(tmp_path, monkeypatch, limit):
    options = {"documents_per_shard": 50 if limit == "documents_per_shard" else 1000}
    if limit == "SHARD_BYTES":
        monkeypatch.setattr(corpus_shards, limit, 50 * 12)
    jsonl(tmp_path / "b.jsonl", [{"text": f"document {part:03d}"} for part in range(500)])

    def shards():
        files = build(tmp_path, [tmp_path / "*.jsonl"], **options)[1]["files"]
        assert all(entry["documents"] <= 50 for name, entry in files.items() if name.startswith("train/"))
        return {entry["sha256"] for name, entry in files.items() if name.startswith("train/")}

    alone = shards()
    for small in range(1, 4):
        jsonl(tmp_path / "a.jsonl", [{"text": f"a small {part:04d}"} for part in range(small)])
        assert len(alone - shards()) <= 1


def test_url(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    assert build(tmp_path, [f"file://{path}"])[0] == ["one"]


@pytest.mark.parametrize(
    ("unit", "expected"), [("line", ["a", "b", "c"]), ("paragraph", ["a\nb", "c"]), ("file", ["a\nb\n\n\nc\n"])]
)
def test_text_documents(tmp_path, unit, expected):
    (tmp_path / "a.txt").write_text("a\nb\n\n\nc\n")
    assert build(tmp_path, [tmp_path / "a.txt"], text_documents=unit)[0] == expected


def test_paragraphs_may_fill_the_limit_and_none_is_lost_silently(tmp_path):
    """Ends of lines, and blanks at both ends, are not part of the paragraph."""
    path = tmp_path / "p.txt"
    options = {"text_documents": "paragraph", "max_document_bytes": 10}
    path.write_bytes(b"a" * 10 + b"\n\nbb\n\n cccc\r\nddd \r\n\n")
    assert build(tmp_path, [path], **options)[0] == ["a" * 10, "bb", "cccc\r\nddd"]
    for long in (b"a" * 11, b"a" * 10 + b"\nb\nc", "é".encode() * 6):
        path.write_bytes(b"bb\n\n" + long + b"\n\ncc\n")
        with pytest.raises(PipelineError, match=r"p\.txt:3: .*max_document_bytes"):
            build(tmp_path, [path], **options)
        texts, manifest = build(tmp_path, [path], **options, on_bad_rows="skip")
        assert texts == ["bb", "cc"]
        assert manifest["skipped_rows"] == {"too long": 1}


BAD = {
    "not JSON": (b'{"text": "fine"}\n{"text": \n', r"a\.jsonl:2: is not JSON"),
    "not UTF-8": (b'{"text": "fine"}\n\n{"text": "\xff"}\n', r"a\.jsonl:3: is not UTF-8"),
    "no text column": (
        b'{"text": "fine"}\n{"body": "x", "id": 1}\n',
        r"a\.jsonl:2: has no column 'text'.*'body', 'id'",
    ),
    "no text": (b'{"text": "fine"}\n{"text": null}\n', r"a\.jsonl:2: 'text' is null"),
    "not a string": (b'{"text": "fine"}\n{"text": 5}\n', r"a\.jsonl:2: 'text' is int"),
    "not an object": (b'{"text": "fine"}\n[1]\n', r"a\.jsonl:2: is list"),
    "empty": (b'{"text": "fine"}\n{"text": "  "}\n', r"a\.jsonl:2: the document is empty"),
    "too long": (b'{"text": "fine"}\n{"text": "' + b"x" * 101 + b'"}\n', r"a\.jsonl:2: .*max_document_bytes \(100\)"),
    "nested too deeply": (
        b'{"text": "fine"}\n{"text": "x", "tree": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n",
        r"a\.jsonl:2: holds JSON nested too deeply",
    ),
    "not Unicode": (b'{"text": "fine"}\n{"text": "\\ud800"}\n', r"a\.jsonl:2: .*surrogate"),
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_rows_fail_with_file_and_line_or_are_counted(tmp_path, reason):
    data, message = BAD[reason]
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(PipelineError, match=message):
        build(tmp_path, [tmp_path / "a.jsonl"], max_document_bytes=100)
    texts, manifest = build(tmp_path, [tmp_path / "a.jsonl"], max_document_bytes=100, on_bad_rows="skip")
    assert texts == ["fine"]
    assert manifest["skipped_rows"] == {reason: 1}


def test_a_huge_line_is_refused_without_being_read_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * (4 << 20) + b'"}\n{"text": "fine"}\n')
    texts, manifest = build(tmp_path, [path], max_document_bytes=100, on_bad_rows="skip")
    assert texts == ["fine"]
    assert manifest["skipped_rows"] == {"too long": 1}


@pytest.mark.parametrize(("unit", "line"), [("file", 1), ("line", 2), ("paragraph", 2)])
def test_text_files_report_lines_too(tmp_path, unit, line):
    (tmp_path / "a.txt").write_text("aa\n" + "b" * 200 + "\n")
    with pytest.raises(PipelineError, match=rf"a\.txt:{line}: .*max_document_bytes"):
        build(tmp_path, [tmp_path / "a.txt"], max_document_bytes=100, text_documents=unit)
    (tmp_path / "a.txt").write_bytes(b"fine\nb\xff\n")
    with pytest.raises(PipelineError, match=r"a\.txt:2: is not UTF-8"):
        build(tmp_path, [tmp_path / "a.txt"], text_documents=unit)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_dictionary_encoded_text_is_read(tmp_path, kind):
    """As pandas writes its categories; a bad row is told as any other."""
    texts = pa.array(["one", "two", "one", None], kind)
    pq.write_table(pa.table({"text": texts.dictionary_encode()}), tmp_path / "a.parquet")
    texts, manifest = build(tmp_path, [tmp_path / "a.parquet"], on_bad_rows="skip")
    assert texts == ["one", "one", "two"]
    assert manifest["skipped_rows"] == {"no text": 1}
    broken = pa.array([b"fine", b"b\xff", b"fine"]).cast(kind, safe=False).dictionary_encode()
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    with pytest.raises(PipelineError, match=r"a\.parquet:2: is not UTF-8"):
        build(tmp_path, [tmp_path / "a.parquet"])
    pq.write_table(pa.table({"text": pa.array([b"x"]).dictionary_encode()}), tmp_path / "a.parquet")
    with pytest.raises(PipelineError, match=r"'text' .* is dictionary<values=binary.*, not string"):
        build(tmp_path, [tmp_path / "a.parquet"])


def test_parquet_column_errors_list_columns(tmp_path):
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(PipelineError, match=r"no column 'text' \(corpus.text_column\); it has body, n"):
        build(tmp_path, [tmp_path / "a.parquet"])
    with pytest.raises(PipelineError, match=r"'n' .* is int64, not string"):
        build(tmp_path, [tmp_path / "a.parquet"], text_column="n")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(PipelineError, match=r"a\.parquet: cannot be read"):
        build(tmp_path, [tmp_path / "a.parquet"])


@pytest.mark.parametrize("absolute", [False, True])
def test_the_same_data_in_two_checkouts_gives_the_same_bytes(tmp_path, monkeypatch, absolute):
    """dvc.lock and DVC's cache must not differ between checkouts, nor under ``dvc exp run --temp``."""
    made = []
    for name in ("one", "two"):
        (tmp_path / name / "raw").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        path = jsonl(tmp_path / name / "raw" / "a.jsonl", [{"text": "x"}, {"text": "y"}])
        made.append(build(tmp_path, [path if absolute else "raw/*.jsonl"])[1]["files"])
        assert pq.read_table(tmp_path / "corpus" / "train")["id"].to_pylist() == ["raw/a.jsonl:1", "raw/a.jsonl:2"]
    if not absolute:
        assert made[0] == made[1]


def test_ids_of_files_outside_the_working_directory(tmp_path, monkeypatch):
    """A relative entry gives relative ids, an absolute one absolute ones."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    for entry, expected in {
        "../*.jsonl": "../a.jsonl:1",
        str(path): f"{path}:1",
        f"file://{path}": f"{path}:1",
    }.items():
        build(tmp_path, [entry])
        assert pq.read_table(tmp_path / "corpus" / "train")["id"].to_pylist() == [expected]


def test_missing_and_unknown_files_are_refused_before_any_is_read(tmp_path):
    good = jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    with pytest.raises(PipelineError, match="matches no file"):
        build(tmp_path, [good, tmp_path / "none-*.jsonl"])
    (tmp_path / "b.pdf").write_text("x")
    with pytest.raises(PipelineError, match="none of the endings"):
        build(tmp_path, [good, tmp_path / "b.pdf"])


def test_directories_that_a_glob_matches_are_no_files(tmp_path):
    """``**`` matches them too; files and folders behind links (as DVC may check them out) are what they lead to."""
    (tmp_path / "tree" / "a" / "out.parquet").mkdir(parents=True)
    jsonl(tmp_path / "tree" / "a" / "x.jsonl", [{"text": "one"}])
    jsonl(tmp_path / "real.jsonl", [{"text": "two"}])
    pq.write_table(pa.table({"text": ["three"]}), tmp_path / "tree" / "a" / "out.parquet" / "part-0.parquet")
    (tmp_path / "tree" / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "tree" / "linked").symlink_to(tmp_path / "folder")
    assert build(tmp_path, [tmp_path / "tree" / "**"])[0] == ["one", "three", "two"]
    assert build(tmp_path, [tmp_path / "tree" / "**" / "*.parquet"])[0] == ["three"]


@pytest.mark.parametrize("entry", ["*.parquet", "out.parquet", "out*"])
def test_a_directory_of_data_is_not_left_out_silently(tmp_path, entry):
    """As Spark writes them; with or without another file that the entry matches."""
    (tmp_path / "raw" / "out.parquet").mkdir(parents=True)
    table = pa.table({"text": ["x"]})
    pq.write_table(table, tmp_path / "raw" / "out.parquet" / "part-0.parquet")
    pattern = tmp_path / "raw" / entry
    for _ in range(2):
        with pytest.raises(PipelineError, match=r"matches the directory '.*/out\.parquet' .*out\.parquet/\*\.parquet'"):
            build(tmp_path, [pattern])
        pq.write_table(table, tmp_path / "raw" / "out-2.parquet")
    assert build(tmp_path, [tmp_path / "raw" / "out.parquet" / "*.parquet"])[0] == ["x"]


def test_brackets_in_names(tmp_path):
    jsonl(tmp_path / "data [v1].jsonl", [{"text": "one"}])
    jsonl(tmp_path / "data v.jsonl", [{"text": "two"}])
    assert build(tmp_path, [tmp_path / "data [v1].jsonl"])[0] == ["one"]
    assert build(tmp_path, [tmp_path / "data [uv].jsonl"])[0] == ["two"]
    (tmp_path / "of [v1]").mkdir()
    jsonl(tmp_path / "of [v1]" / "a.jsonl", [{"text": "three"}])
    with pytest.raises(PipelineError, match=r"matches no file; .*\[\[\] stands for a bracket"):
        build(tmp_path, [tmp_path / "of [v1]" / "*.jsonl"])
    assert build(tmp_path, [tmp_path / "of [[]v1]" / "*.jsonl"])[0] == ["three"]


class Unreachable(fsspec.AbstractFileSystem):
    """A remote file system that fails in its client library's own way, which is no OSError (as hf:// does)."""

    protocol = "unreachable"
    listed = False

    def find(self, path, **options):
        if not self.listed:
            raise ConnectionRefused("Connection refused\nby the peer")
        return {"folder/a.jsonl": {"name": "folder/a.jsonl", "type": "file", "size": 1}}

    def info(self, path, **options):
        return {"name": path, "type": "file", "size": 1}

    def _open(self, path, *arguments, **options):
        raise ConnectionRefused("Connection refused\nby the peer")


class ConnectionRefused(Exception):
    pass


def test_a_remote_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    message = r"corpus\.files: 'unreachable://folder/\*\.jsonl' cannot be read \(Connection refused\); check"
    with pytest.raises(PipelineError, match=message) as error:
        build(tmp_path, ["unreachable://folder/*.jsonl"])
    assert "\n" not in str(error.value)
    monkeypatch.setattr(Unreachable, "listed", True)
    with pytest.raises(PipelineError, match=r"folder/a\.jsonl: cannot be read: Connection refused$"):
        build(tmp_path, ["unreachable://folder/*.jsonl"])


def test_nothing_to_train_on(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(PipelineError, match="no document"):
        build(tmp_path, [tmp_path / "a.jsonl"])


def test_hub_reads_a_local_folder_and_names_columns(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["one", "two", "three"]}), folder / "train.parquet")
    for streaming in (True, False):
        config = CorpusConfig(
            source="hub",
            hub=[HubDataset(name=str(folder), streaming=streaming, max_documents=2)],
            validation_fraction=0.001,
        )
        manifest = write_corpus(config, tmp_path / "c", tmp_path / "e")
        assert manifest["splits"]["train"]["documents"] == 2
    config = CorpusConfig(source="hub", hub=[HubDataset(name=str(folder))], text_column="body")
    with pytest.raises(PipelineError, match=r"no column 'body'.*it has text"):
        write_corpus(config, tmp_path / "c", tmp_path / "e")


def damaged_hub_set(folder, kind):
    """A local data set whose reading fails on the way."""
    folder.mkdir()
    rows = [json.dumps({"text": f"document {number}"}) for number in range(300)]
    if kind == "not JSON":
        rows.insert(200, "{broken")
    elif kind == "another column":
        jsonl(folder / "b.jsonl", [{"text": "x", "extra": 1}])
    (folder / "a.jsonl").write_text("\n".join(rows) + "\n")
    if kind == "damaged":
        (folder / "a.jsonl").unlink()
        texts = [str(random.Random(n).random()) * 50 for n in range(3000)]
        pq.write_table(pa.table({"text": texts}), folder / "a.parquet", row_group_size=500)
        data = bytearray((folder / "a.parquet").read_bytes())
        data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
        (folder / "a.parquet").write_bytes(data)


@pytest.mark.parametrize("kind", ["not JSON", "another column", "damaged"])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_hub_data_set_that_cannot_be_read_on_is_named(tmp_path, monkeypatch, kind, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    damaged_hub_set(folder, kind)
    config = CorpusConfig(source="hub", hub=[HubDataset(name=str(folder), streaming=streaming)], on_bad_rows="skip")
    with pytest.raises(PipelineError) as error:
        write_corpus(config, tmp_path / "c", tmp_path / "e")
    named = rf"corpus\.hub: '{re.escape(str(folder))}' \(config None, split 'train'\) "
    expected = r"cannot be read beyond row \d+: .+; " if streaming else r"cannot be opened: .+"
    assert re.match(named + expected, str(error.value))
    assert "\n" not in str(error.value)
    assert "An error occurred while generating" not in str(error.value), "the library's cause, not its envelope"


def test_splits_of_one_hub_data_set_are_sources_apart(tmp_path):
    """Else dataset.sampling_probs would weigh one source where two were meant."""
    folder = tmp_path / "set"
    folder.mkdir()
    for split, texts in {"train": ["one", "two"], "test": ["three"]}.items():
        pq.write_table(pa.table({"text": texts}), folder / f"{split}.parquet")
    hub = [{"name": str(folder)}, {"name": str(folder), "split": "test"}]
    problems = []
    config = parse(CorpusConfig, {"source": "hub", "hub": hub, "validation_fraction": 0.001}, "corpus", problems)
    assert problems == []
    manifest = write_corpus(config, tmp_path / "c", tmp_path / "e")
    assert manifest["sources"] == [str(folder), f"{folder}:test"]
    assert [entry["source"] for entry in manifest["files"].values()] == manifest["sources"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"source": "hub", "hub": [{"name": "o/ds", "split": "test"}] * 2}, "corpus.hub: .* twice, .* o/ds:test;"),
        ({"source": "hub", "hub": [{"name": "o/ds"}, {"name": "o", "config": "ds"}]}, "corpus.hub: .* twice, .* o/ds;"),
        ({"source": "files", "files": ["a.jsonl", "b.jsonl", "a.jsonl"]}, "corpus.files: .* twice, .* a.jsonl;"),
    ],
)
def test_a_source_listed_twice_is_refused(section, message):
    problems = []
    parse(CorpusConfig, section, "corpus", problems)
    assert len(problems) == 1
    assert re.search(message, problems[0])


def test_hub_without_a_network_fails_with_one_line(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    config = CorpusConfig(source="hub", hub=[HubDataset(name="owner/name")])
    with pytest.raises(PipelineError, match=r"owner/name.*cannot be reached") as error:
        write_corpus(config, tmp_path / "c", tmp_path / "e")
    assert "\n" not in str(error.value)
