"""Packed, joined and unpacked batches: the same documents, in the shapes that each promises."""

import numpy as np
import pytest
import torch

from neobert.config.datacollator import DataCollatorConfig
from neobert.training.masking import IGNORED
from neobert.training.mlm import MlmSource
from neobert.training.phase import held_out_collator
from neobert.training.unpacked import UnpackedSource
from tests.training import tiny


def unpacked(**changes):
    return UnpackedSource(
        tiny.MemoryRows(), DataCollatorConfig(pack_sequences=False, **changes), tiny.TABLE, 7, tiny.PAD
    )


def restored(batch):
    """The unmasked ids of a batch, cut into its segments."""
    ids = batch["input_ids"].clone()
    kept = batch["labels"] != IGNORED
    ids[batch["masked_positions"][kept]] = batch["labels"][kept].to(ids.dtype)
    return [tuple(s.tolist()) for s in torch.tensor_split(ids, batch["cu_seqlens"][1:-1].to(torch.int64))]


def test_shapes_are_static_and_padding_is_a_segment_of_its_own():
    batches = tiny.source().micro_batches(0, 24, 4, 0, 1)
    assert {(b["input_ids"].shape, b["labels"].shape, b["max_seqlen"]) for b in batches} == {
        (torch.Size([128]), torch.Size([24]), 32)
    }
    for batch in batches:
        assert batch["cu_seqlens"].dtype == torch.int32
        assert batch["cu_seqlens"][-1] == 128
        segments = restored(batch)
        assert all(set(s) == {tiny.PAD} or tiny.PAD not in s for s in segments)
        real = [s for s in segments if tiny.PAD not in s]
        assert batch["tokens"] == sum(map(len, real))
        assert batch["squared_lengths"] == sum(len(s) ** 2 for s in real)
        assert batch["count"] == (batch["labels"] != IGNORED).sum()
        starts = batch["cu_seqlens"][:-1].long()
        assert (batch["position_ids"][starts] == 0).all()


def test_batches_do_not_depend_on_ranks_and_are_pure():
    source = tiny.source()
    alone = source.micro_batches(16, 8, 2, 0, 1)
    ranks = [source.micro_batches(16, 8, 2, rank, 2) for rank in (0, 1)]
    for index, batch in enumerate(alone):
        other = ranks[index % 2][index // 2]
        assert all(torch.equal(batch[k], other[k]) for k in batch if isinstance(batch[k], torch.Tensor))


def test_joined_rows_have_no_inner_boundary_and_the_same_masks():
    packed, joined = tiny.source(), tiny.source(join_segments=True)
    a, b = (s.micro_batches(0, 4, 4, 0, 1)[0] for s in (packed, joined))
    assert torch.equal(a["input_ids"], b["input_ids"])
    assert torch.equal(a["masked_positions"], b["masked_positions"])
    assert len(b["cu_seqlens"]) - 1 <= 8 < len(a["cu_seqlens"])
    assert b["position_ids"].max() > a["position_ids"].max()


def test_every_document_is_read_once_an_epoch_alone_and_masked_exactly():
    source, rows = unpacked(), tiny.MemoryRows()
    expected = []
    for row in range(rows.rows):
        ids, end = rows.ids[row], 0
        for length in rows.lengths[row]:
            expected.append(tuple(ids[end : end + length].tolist()))
            end += length
    assert source.samples_per_epoch == len(expected)
    seen = []
    for sample in range(0, len(expected), 5):
        count = min(5, len(expected) - sample)
        (batch,) = source.micro_batches(sample, count, count, 0, 1)
        assert len(batch["input_ids"]) % 1024 == 0
        assert len(batch["labels"]) % 256 == 0
        documents = restored(batch)[:count]
        wanted = sum(int(np.rint(0.2 * sum(t not in (0, 1, 2, 3) for t in d))) for d in documents)
        assert batch["count"] == wanted
        seen += documents
    assert sorted(seen) == sorted(expected)


def test_held_out_rows_are_masked_alike_in_all_ablations():
    ablations = [{}, {"mask_all": True}, {"join_segments": True}, {"pack_sequences": False}]
    alike = {held_out_collator(DataCollatorConfig(**changes)) for changes in ablations}
    assert len(alike) == 1
    source = MlmSource(tiny.MemoryRows(), alike.pop(), tiny.TABLE, 7)
    batch = source.fixed(np.arange(8), 8)
    predicted = batch["masked_positions"][batch["labels"] != IGNORED]
    assert (batch["input_ids"][predicted] == tiny.MASK).all()
    assert batch["cu_seqlens"].tolist() == tiny.source().fixed(np.arange(8), 8)["cu_seqlens"].tolist()


@pytest.mark.parametrize("make", [unpacked, lambda: tiny.source(join_segments=True)], ids=["unpacked", "joined"])
def test_both_ablations_train(tmp_path, make):
    result = tiny.run(tmp_path, {"max_steps": 40}, source=make())
    assert result.history[-1]["loss"] < result.history[0]["loss"]
