"""Packed rows hold every token once, between one CLS and one SEP a segment; files are bound to their inputs."""

import json
from collections import Counter

import numpy as np
import pytest

from neobert.config.packing import LengthShare, PackingConfig
from neobert.errors import PipelineError
from neobert.jobs import Engine
from neobert.packing.pack import read_tokens
from neobert.packing.shards import PackedDataset
from neobert.packing.stage import pack
from tests.packing.conftest import SPECIAL, random_documents, write_tokens

CONFIG = PackingConfig(max_length=64)


def segments(data: PackedDataset) -> list[tuple[int, ...]]:
    found = []
    for index in range(data.rows):
        ids, lengths = data.row(index)
        position = 0
        for length in lengths.tolist():
            segment = ids[position : position + length]
            assert segment[0] == SPECIAL["cls"]
            assert segment[-1] == SPECIAL["sep"]
            inner = segment[1:-1]
            assert not np.isin(inner, [SPECIAL["cls"], SPECIAL["sep"], SPECIAL["pad"]]).any()
            found.append(tuple(inner.tolist()))
            position += length
        assert (ids[position:] == SPECIAL["pad"]).all()
        assert position <= data.max_length
    return found


def test_every_document_is_there_once_in_pieces_of_its_own_order(tokens, tmp_path):
    pack(tokens, tmp_path / "packed", CONFIG, 1, tmp_path / "cache", Engine(workers=1))
    data = PackedDataset(tmp_path / "packed" / "train")
    flat = [read_tokens(tokens / f"train/part-0000{i}.arrow") for i in range(2)]
    documents = [d.tolist() for ids, lengths in flat for d in np.split(ids, np.cumsum(lengths)[:-1])]
    expected = Counter()
    for document in documents:
        expected.update(document)
    pieces = segments(data)
    assert Counter(token for piece in pieces for token in piece) == expected
    left = Counter(pieces)
    for document in documents:  # greedily: each document is a run of pieces that are in the rows
        whole = tuple(document)
        if left[whole]:
            left[whole] -= 1
            continue
        assert len(document) > CONFIG.max_length - 2, "only documents longer than a row are cut"
        cut = next(p for p in left if left[p] and tuple(document[: len(p)]) == p)
        assert len(cut) >= (CONFIG.max_length - 2) // 2


def test_rows_that_were_mended_hold_every_token_in_its_place(tmp_path):
    """Tokens are numbered through the shard, so a segment says where it was cut from."""
    lengths = np.clip(np.random.default_rng(3).lognormal(4, 1, 3000), 3, 5000).astype(int)
    ends = 10 + np.cumsum(lengths)
    documents = [list(range(stop - length, stop)) for stop, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
    tokens = write_tokens(tmp_path / "tokens", {"train/part-00000.arrow": documents}, vocab_size=int(ends[-1]))
    totals = pack(tokens, tmp_path / "packed", CONFIG, 1, tmp_path / "cache", Engine(workers=1))["train"]
    found = sorted(segments(PackedDataset(tmp_path / "packed" / "train")))
    assert [token for segment in found for token in segment] == list(range(10, int(ends[-1]))), "each once, in order"
    assert set(ends.tolist()) <= {segment[-1] + 1 for segment in found}, "no segment spans two documents"
    inner = CONFIG.max_length - 2
    assert len(found) > sum(-(-length // inner) for length in lengths.tolist()), "more cuts than the fewest"
    assert totals["fill"] >= 0.998


def test_dimensions_and_manifest(tokens, tmp_path):
    totals = pack(tokens, tmp_path / "packed", CONFIG, 1, tmp_path / "cache", Engine(workers=1))
    data = PackedDataset(tmp_path / "packed" / "train")
    assert data.rows == totals["train"]["rows"]
    assert data.vocab_size == 1000
    ids, lengths = data.take([3, 0, data.rows - 1])
    assert (ids.dtype, ids.shape) == (np.int32, (3, 64))
    assert (ids[0] == data.row(3)[0]).all()
    assert (lengths[1] == data.row(0)[1]).all()
    assert data.max_segments == max(len(data.row(i)[1]) for i in range(data.rows))
    assert data.row(0)[0].dtype == np.uint16
    assert not data.row(0)[0].flags.owndata, "a view of the mapped file"
    assert totals["train"]["fill"] > 0.97
    with pytest.raises(IndexError):
        data.row(data.rows)


def test_large_vocabularies_take_int32(tmp_path):
    documents = [[70_000, 5, 6], [80_000] * 90]
    tokens = write_tokens(tmp_path / "tokens", {"train/part-00000.arrow": documents}, vocab_size=80_001)
    pack(tokens, tmp_path / "packed", CONFIG, 1, tmp_path / "cache", Engine(workers=1))
    data = PackedDataset(tmp_path / "packed" / "train")
    assert data.row(0)[0].dtype == np.int32
    assert sorted(map(sum, segments(data))) == sorted([70_011, 80_000 * 45, 80_000 * 45]) or data.rows == 2


def test_rows_are_not_sorted_by_segments(tmp_path):
    tokens = write_tokens(tmp_path / "tokens", {"train/part-00000.arrow": random_documents(4000, 5, longest=60)})
    pack(tokens, tmp_path / "packed", CONFIG, 1, tmp_path / "cache", Engine(workers=1))
    data = PackedDataset(tmp_path / "packed" / "train")
    counts = np.array([len(data.row(i)[1]) for i in range(data.rows)])
    assert abs(np.corrcoef(counts, np.arange(data.rows))[0, 1]) < 0.1


def test_shards_do_not_depend_on_workers_or_neighbours(tokens, tmp_path):
    def hashes(out):
        manifest = json.loads((out / "train" / "manifest.json").read_text())
        return [entry["sha256"] for entry in manifest["files"].values()]

    pack(tokens, tmp_path / "a", CONFIG, 1, tmp_path / "cache_a", Engine(workers=1))
    pack(tokens, tmp_path / "b", CONFIG, 1, tmp_path / "cache_b", Engine(workers=2))
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    more = write_tokens(
        tmp_path / "more",
        {"train/part-00000.arrow": random_documents(50, 9), "train/part-00001.arrow": random_documents(300, 0)},
    )
    pack(more, tmp_path / "c", CONFIG, 1, tmp_path / "cache_c", Engine(workers=1))
    assert hashes(tmp_path / "c")[1] == hashes(tmp_path / "a")[0], "the same input under another number"
    pack(tokens, tmp_path / "d", CONFIG, 2, tmp_path / "cache_d", Engine(workers=1))
    assert hashes(tmp_path / "d") != hashes(tmp_path / "a"), "the seed orders rows"


def test_length_mixture_gives_the_shares(tokens, tmp_path):
    mixture = [LengthShare(0, 0.2), LengthShare(64, 0.4), LengthShare(128, 0.4)]
    totals = pack(tokens, tmp_path / "packed", PackingConfig(64, mixture), 1, tmp_path / "cache", Engine(workers=1))
    parts = totals["train"]["mixture_tokens"]
    whole = sum(parts.values())
    for part in mixture:
        assert parts[str(part.min_tokens)] / whole == pytest.approx(part.share, abs=0.05)
    assert "mixture_tokens" not in totals["validation"], "validation measures all lengths"
    impossible = PackingConfig(64, [LengthShare(0, 0.5), LengthShare(5000, 0.5)])
    with pytest.raises(PipelineError, match=r"length_mixture asks for documents of at least 5000 tokens"):
        pack(tokens, tmp_path / "packed", impossible, 1, tmp_path / "cache", Engine(workers=1))
    assert [rule for _, rule in PackingConfig(64, [LengthShare(0, 0.5)]).problems()]


def repeated(*documents: tuple[int, int], seed: int) -> list[list[int]]:
    """For each (count, tokens) so many random documents of that length."""
    generator = np.random.default_rng(seed)
    return [generator.integers(5, 1000, tokens).tolist() for count, tokens in documents for _ in range(count)]


@pytest.mark.parametrize("layout", ["one shard", "short and long apart", "one document a shard"])
def test_a_length_mixture_holds_over_all_shards(tmp_path, caplog, layout):
    """A shard without long documents, or with one alone, must not change the mixture of the whole."""
    few = layout == "one document a shard"
    short, long = (repeated((120, 40), seed=1), repeated((40, 80), seed=2)) if few else ([], [])
    if not few:
        short, long = repeated((4000, 10), seed=1), repeated((100, 400), seed=2)
    groups = {"one shard": [short + long], "short and long apart": [short, long]}.get(
        layout, [[document] for document in short + long]
    )
    tokens = write_tokens(tmp_path / "tokens", {f"train/part-{i:05d}.arrow": g for i, g in enumerate(groups)})
    config = PackingConfig(64, [LengthShare(0, 0.4), LengthShare(60 if few else 256, 0.6)])
    caplog.set_level("INFO")
    hashes = []
    for workers in (1,) if few else (1, 2):
        out = tmp_path / f"packed{workers}"
        totals = pack(tokens, out, config, 1, tmp_path / f"cache{workers}", Engine(workers=workers))["train"]
        manifest = json.loads((out / "train" / "manifest.json").read_text())
        hashes.append([entry["sha256"] for entry in manifest["files"].values()])
    long_part = list(totals["mixture_asked"])[1]
    assert totals["mixture_asked"] == {"0": 0.4, long_part: 0.6}
    assert totals["mixture_got"] == {"0": pytest.approx(0.4, abs=0.01), long_part: pytest.approx(0.6, abs=0.01)}
    assert manifest["mixture_got"] == totals["mixture_got"]
    assert f"at least {long_part} tokens: asked 60.00%, got {totals['mixture_got'][long_part]:.2%}" in caplog.text
    assert all(same == hashes[0] for same in hashes)
    data = PackedDataset(out / "train")
    in_rows = sum(int(data.row(index)[1].sum()) for index in range(data.rows))
    assert in_rows == totals["tokens"] > 0, "shards of which nothing was taken are no trouble"


def test_a_new_shard_that_changes_the_mixture_repacks_the_finished_ones(tmp_path):
    """What one shard takes depends on all; results kept in the cache must not belong to the mixture before."""
    config = PackingConfig(64, [LengthShare(0, 0.4), LengthShare(256, 0.6)])
    shards = {f"train/part-0000{i}.arrow": repeated((500, 10), (50, 400), seed=i) for i in range(2)}
    less = write_tokens(tmp_path / "less", shards)
    more = write_tokens(tmp_path / "more", {**shards, "train/part-00002.arrow": repeated((5000, 10), seed=9)})

    def packed(tokens, cache):
        pack(tokens, tmp_path / "packed", config, 1, tmp_path / cache, Engine(workers=1))
        return json.loads((tmp_path / "packed/train/manifest.json").read_text())

    before, after = packed(less, "cache"), packed(more, "cache")
    assert after == packed(more, "another cache"), "as if nothing had been finished before"
    name = "shard-00000.arrow"
    assert after["files"][name]["sha256"] != before["files"][name]["sha256"], "its documents are a smaller share now"


def test_an_empty_validation_split_is_an_empty_data_set(tmp_path):
    tokens = write_tokens(tmp_path / "tokens", {"train/part-00000.arrow": random_documents(10, 0)})
    pack(tokens, tmp_path / "packed", CONFIG, 1, tmp_path / "cache", Engine(workers=1))
    assert PackedDataset(tmp_path / "packed" / "validation").rows == 0
