"""Batches: pure in the step, one source each, no repeated texts, the same rows whatever the ranks."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from neobert.config.contrastive_data import ContrastiveDataConfig, PairSource
from neobert.contrastive.batching import Schedule
from neobert.contrastive.pairs import Pairs
from neobert.contrastive.preprocess import preprocess
from neobert.contrastive.simcse import PretrainingTexts
from neobert.contrastive.source import PairSource as Source
from neobert.contrastive.source import collate
from neobert.errors import PipelineError


def test_batches_depend_on_the_step_alone(world):
    pairs = Pairs(world / "pairs", "train")
    schedule = Schedule(pairs, 16, {}, 0.5, seed=3)
    forward = [schedule.batch(step) for step in range(60)]
    for step in (59, 0, 31):
        group, rows = Schedule(pairs, 16, {}, 0.5, seed=3).batch(step)
        assert group == forward[step][0]
        assert rows.tolist() == forward[step][1].tolist()
    assert any(rows.tolist() != Schedule(pairs, 16, {}, 0.5, seed=4).batch(s)[1].tolist() for s, (_, rows) in
               enumerate(forward))  # fmt: skip


def test_batches_have_one_group_and_sizes(world):
    pairs = Pairs(world / "pairs", "train")
    schedule = Schedule(pairs, 16, {"small": 8}, 0.5, seed=0)
    groups = []
    for step in range(200):
        group, rows = schedule.batch(step)
        assert set(pairs.groups[rows]) == {group}
        assert len(rows) == {"big": 16, "small": 8}[pairs.names[group]]
        groups.append(group)
    counts = np.bincount(pairs.groups) ** 0.5
    assert np.bincount(groups) / 200 == pytest.approx(counts / counts.sum(), abs=0.02)


def test_a_source_with_a_slash_has_its_own_size(tmp_path, tokenizer_dir):
    rows = [{"query": f"w{i} w1", "corpus": f"w{i} w2", "kind": "a"} for i in range(20)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = PairSource(path=str(tmp_path / "p.jsonl"), kind="kind")
    config = ContrastiveDataConfig(sources={"qa/en": source}, decontaminate=[], validation_fraction=0.0)
    preprocess(config, tokenizer_dir, tmp_path / "pairs", tmp_path / "cache")
    pairs = Pairs(tmp_path / "pairs", "train")
    assert (pairs.sources, pairs.names) == (["qa/en"], ["qa/en/a"])
    assert len(Schedule(pairs, 16, {"qa/en": 4}, 1.0, seed=0).batch(0)[1]) == 4


def test_a_pass_takes_each_row_once(world):
    pairs = Pairs(world / "pairs", "train")
    schedule = Schedule(pairs, 16, {}, 1.0, seed=0)
    steps = [schedule.batch(step) for step in range(schedule.steps_per_epoch * 4)]
    big = [rows for group, rows in steps if pairs.names[group] == "big"]
    per_pass = int(schedule.batches_per_pass[0])
    for start in range(0, len(big) - per_pass, per_pass):
        rows = np.concatenate(big[start : start + per_pass])
        assert len(np.unique(rows)) == len(rows)


def test_no_text_twice_in_a_batch(tmp_path, tokenizer_dir):
    rows = [{"query": f"w{i % 7} w1", "corpus": f"w{i % 11} w2 w{i}", "negative": f"w{i % 19} w3"} for i in range(80)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = PairSource(path=str(tmp_path / "p.jsonl"), negative="negative")
    config = ContrastiveDataConfig(sources={"s": source}, decontaminate=[], validation_fraction=0.0)
    preprocess(config, tokenizer_dir, tmp_path / "pairs", tmp_path / "cache")
    pairs = Pairs(tmp_path / "pairs", "train")
    schedule = Schedule(pairs, 5, {}, 1.0, seed=0)
    sizes = []
    for step in range(40):
        _, chosen = schedule.batch(step)
        hashes = np.concatenate([pairs.hashes(row) for row in chosen])
        assert len(np.unique(hashes)) == len(hashes)
        sizes.append(len(chosen))
    assert np.mean(sizes) > 4.4


def unlabelled(root: Path, tokenizer_dir: Path, rows: list[dict]) -> Pairs:
    root.mkdir()
    (root / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = PairSource(path=str(root / "p.jsonl"), negative="negative" if "negative" in rows[0] else None)
    config = ContrastiveDataConfig(sources={"faq": source}, decontaminate=[], validation_fraction=0.0)
    preprocess(config, tokenizer_dir, root / "pairs", root / "cache")
    return Pairs(root / "pairs", "train")


def test_rows_of_a_frequent_text_are_dealt_over_the_pass(tmp_path, tokenizer_dir, caplog):
    rows = [
        {"query": f"w{i % 100} {i}", "corpus": "see the manual" if i < 300 else f"answer w1 {i}"} for i in range(400)
    ]
    pairs = unlabelled(tmp_path / "faq", tokenizer_dir, rows)
    schedule = Schedule(pairs, 64, {}, 1.0, seed=0)
    assert schedule.steps_per_epoch == 6
    for turn in range(3):
        taken = [schedule.batch(step)[1] for step in range(6 * turn, 6 * turn + 6)]
        # A batch holds the common answer once, so a pass has 100 + 6 rows; one by one they would fill two batches.
        assert sorted(len(batch) for batch in taken) == [17, 17, 18, 18, 18, 18]
        assert len(np.unique(np.concatenate(taken))) == 106
        assert all((np.array([pairs.hashes(row)[1] for row in batch]) == pairs.hashes(0)[1]).sum() == 1
                   for batch in taken)  # fmt: skip
    common = {int(row) for step in range(60) for row in schedule.batch(step)[1] if row < 300}
    assert len(common) > 45  # others every pass
    assert schedule.batch(13)[1].tolist() == Schedule(pairs, 64, {}, 1.0, seed=0).batch(13)[1].tolist()
    assert not caplog.records


def test_texts_that_do_not_repeat_stay_in_the_permutations_order(tmp_path, tokenizer_dir):
    rows = [{"query": f"w{i % 100} {i}", "corpus": f"answer w1 {i}", "negative": f"other w2 {i}"} for i in range(100)]
    schedule = Schedule(unlabelled(tmp_path / "s", tokenizer_dir, rows), 16, {}, 1.0, seed=0)
    order = schedule._rows(0, turn=1)
    taken = [schedule.batch(step)[1].tolist() for step in range(6, 12)]
    assert taken == [order[start : start + 16].tolist() for start in range(0, 96, 16)]


def test_batches_of_one_pair_are_warned_of(tmp_path, tokenizer_dir, caplog):
    rows = [{"query": f"w{i} w1", "corpus": f"w{i} w2", "negative": "w3 w4"} for i in range(40)]
    schedule = Schedule(unlabelled(tmp_path / "s", tokenizer_dir, rows), 8, {}, 1.0, seed=0)
    assert [len(schedule.batch(step)[1]) for step in range(10)] == [1] * 10
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "5 of 5 batches of source faq hold fewer than 2 pairs"
    ]


def labelled(root: Path, tokenizer_dir: Path, labels: list[int | str]) -> Pairs:
    rows = [{"query": f"w{i} w1", "corpus": f"w{i} w2", "of": label} for i, label in enumerate(labels)]
    (root / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = PairSource(path=str(root / "p.jsonl"), label="of")
    config = ContrastiveDataConfig(sources={"s": source}, decontaminate=[], validation_fraction=0.0)
    preprocess(config, tokenizer_dir, root / "pairs", root / "cache")
    return Pairs(root / "pairs", "train")


def test_batches_by_class_bring_labels_together(tmp_path, tokenizer_dir):
    pairs = labelled(tmp_path, tokenizer_dir, [i % 9 for i in range(81)] + [99])
    schedule = Schedule(pairs, 8, {}, 1.0, seed=0, by_class=True)
    plain = Schedule(pairs, 8, {}, 1.0, seed=0)
    shares = {}
    for name, found in (("by class", schedule), ("plain", plain)):
        batches = [found.batch(step)[1] for step in range(10)]  # one pass of 82 rows
        assert len(np.unique(np.concatenate(batches))) == 80
        partners = [(np.bincount(np.unique(pairs.classes[b], return_inverse=True)[1]) > 1).mean() for b in batches]
        shares[name] = float(np.mean(partners))
        assert all(len(np.unique(pairs.classes[b])) > 1 for b in batches)
    assert shares["by class"] > 0.85 > 0.5 > shares["plain"]
    assert schedule.batch(7)[1].tolist() == Schedule(pairs, 8, {}, 1.0, 0, by_class=True).batch(7)[1].tolist()


def test_a_dominant_class_waits_for_another_pass(tmp_path, tokenizer_dir):
    pairs = labelled(tmp_path, tokenizer_dir, ["many"] * 60 + ["few"] * 5)
    schedule = Schedule(pairs, 6, {}, 1.0, seed=0, by_class=True)
    # Two rounds, 4 of each, and the odd one of the few; a batch of the many alone would have nothing to tell apart.
    assert schedule.batches_per_pass.tolist() == [1]
    taken = [schedule.batch(step)[1] for step in range(40)]
    assert all(len(set(pairs.classes[rows])) == 2 for rows in taken)
    assert len(np.unique(np.concatenate(taken))) > 55
    (tmp_path / "one").mkdir()
    alone = labelled(tmp_path / "one", tokenizer_dir, ["same"] * 5)
    with pytest.raises(PipelineError, match=r"all pairs of 's' have one label"):
        Schedule(alone, 4, {}, 1.0, seed=0, by_class=True)


def test_a_query_may_repeat_within_its_class(tmp_path, tokenizer_dir):
    rows = [{"query": f"w{i % 4} w1", "corpus": f"w{i % 11} w2 w{i}"} for i in range(40)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = PairSource(path=str(tmp_path / "p.jsonl"), label="query")
    config = ContrastiveDataConfig(sources={"s": source}, decontaminate=[], validation_fraction=0.0)
    preprocess(config, tokenizer_dir, tmp_path / "pairs", tmp_path / "cache")
    pairs = Pairs(tmp_path / "pairs", "train")
    for by_class, longest in ((True, 8), (False, 4)):
        schedule = Schedule(pairs, 8, {}, 1.0, seed=0, by_class=by_class)
        assert max(len(schedule.batch(step)[1]) for step in range(5)) == longest


def test_ranks_share_the_batch(world):
    pairs = Pairs(world / "pairs", "train")
    source = Source(pairs, Schedule(pairs, 16, {}, 0.5, 0), pad_token_id=0, max_negatives=2)
    (whole,) = source.micro_batches(32, 16, 16, 0, 1)
    parts = [source.micro_batches(32, 16, 4, rank, 4)[0] for rank in range(4)]
    assert sum(part["count"] for part in parts) == whole["count"]
    assert sum(part["tokens"] for part in parts) == whole["tokens"]
    assert parts[0]["negative_sizes"] == parts[3]["negative_sizes"]
    assert sum(parts[0]["negative_sizes"]) == whole["negative_sizes"][0]
    labels = pairs.classes[source.schedule.batch(2)[1]]
    assert all(part["labels"].tolist() == labels.tolist() for part in parts)
    with pytest.raises(PipelineError, match="multiple of the number of ranks"):
        source.micro_batches(0, 16, 4, 0, 2)


def test_collate_keeps_every_text():
    texts = [np.arange(1, 1 + n) for n in (3, 9, 1, 4, 4, 2, 7)]
    for chunks in (1, 2, 3, 7, 9):
        batch = collate(texts, 0, chunks, multiple=4)
        found = []
        for t0, t1, s0, s1, count, longest in batch["chunks"]:
            starts = batch["cu_seqlens"][s0 : s1 + 1].tolist()
            assert (starts[0], starts[-1]) == (t0, t1)
            assert (t1 - t0) % 4 == 0
            lengths = np.diff(starts)
            assert longest >= lengths.max()
            found += [batch["input_ids"][a:b].tolist() for a, b in pairwise(starts)][:count]
        assert [found[i] for i in batch["order"].tolist()] == [text.tolist() for text in texts]


def test_pretraining_text_takes_its_share_of_the_steps(world):
    pairs = Pairs(world / "pairs", "train")
    sha = pairs.manifest["tokenizer_sha256"]
    options = {"cls_token_id": 2, "sep_token_id": 3, "max_length": 12, "seed": 0, "tokenizer_sha256": sha}
    texts = PretrainingTexts(world / "tokens", prob=0.3, **options)
    taken = [texts.takes(step) for step in range(2000)]
    assert np.mean(taken) == pytest.approx(0.3, abs=0.04)
    source = Source(pairs, Schedule(pairs, 16, {}, 0.5, 0), pad_token_id=0, max_negatives=2, simcse=texts)
    step = taken.index(True)
    (batch,) = source.micro_batches(step * 16, 16, 16, 0, 1)
    assert batch["count"] == 16
    assert batch["negative_sizes"] == (0,)
    starts = batch["cu_seqlens"].tolist()
    found = [batch["input_ids"][a:b].tolist() for a, b in pairwise(starts)]
    assert found[:16] == found[16:32]
    assert all(text[0] == 2 and text[-1] == 3 and len(text) <= 12 for text in found)
    assert len({tuple(text) for text in found}) == 16
    assert texts.batch(5, 99).tolist() != sorted(texts.batch(5, 99).tolist())
    with pytest.raises(PipelineError, match="another tokenizer"):
        PretrainingTexts(world / "tokens", prob=0.3, **options | {"tokenizer_sha256": "x"})


def test_a_rank_without_pairs_takes_part(world):
    batch = collate([], 0, 2, multiple=8)
    assert [chunk[4] for chunk in batch["chunks"]] == [0, 0]
    assert len(batch["order"]) == 0
