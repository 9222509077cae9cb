"""Compiled training: one full graph for the whole run, whatever the batches, and the losses of the eager run."""

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from neobert.training.evaluate import evaluator
from tests.training import tiny


def test_varied_batches_compile_once_and_follow_the_eager_losses(tmp_path):
    segments = {len(b["cu_seqlens"]) for b in tiny.source().micro_batches(0, 96, 4, 0, 1)}
    assert len(segments) > 4, "the batches must vary for this test to say anything"
    torch._dynamo.reset()
    counters.clear()
    compiled = tiny.run(tmp_path / "a", {"torch_compile": True, "torch_compile_backend": "aot_eager"})
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    eager = tiny.run(tmp_path / "b")
    for a, b in zip(compiled.history, eager.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


@pytest.mark.parametrize("dynamic", [None, False])
def test_varied_held_out_batches_compile_once(tmp_path, dynamic):
    """Else more than eight numbers of segments end the run where each shape would have a graph of its own."""
    source, rows = tiny.source(), np.arange(24)
    segments = {len(source.fixed(rows[i : i + 2], 2)["cu_seqlens"]) for i in range(0, 24, 2)}
    assert len(segments) > 2, "the batches must vary for this test to say anything"
    torch._dynamo.reset()
    counters.clear()
    compiled = {"torch_compile": True, "torch_compile_backend": "eager", "torch_compile_dynamic": dynamic}
    tiny.run(tmp_path, {**compiled, "max_steps": 2}, evaluate=evaluator(source, {"": rows}, 2))
    assert counters["stats"]["unique_graphs"] == 2, "one of training and one of evaluation"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_measuring_logits_neither_breaks_the_graph_nor_recompiles(tmp_path, checkpointing):
    optimizer = {"name": "muonclip", "qk_clip_threshold": 0.003}
    trainer = {"gradient_checkpointing": checkpointing, "max_steps": 6}
    torch._dynamo.reset()
    counters.clear()
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    a = tiny.run(tmp_path / "a", {**trainer, **compiled}, optimizer=optimizer)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    b = tiny.run(tmp_path / "b", trainer, optimizer=optimizer)
    plain = tiny.run(tmp_path / "c", trainer, optimizer={"name": "muon"})
    weight = "model.encoder.layers.0.attention.qkv.weight"
    torch.testing.assert_close(a.state_dict[weight], b.state_dict[weight])
    assert a.state_dict[weight].norm() < 0.95 * plain.state_dict[weight].norm(), "the threshold must be exceeded"


def test_timing_and_throughput_are_recorded_outside_the_history(tmp_path):
    import json

    result = tiny.run(tmp_path, {"eval_steps": 4}, {"timing": True}, evaluate=lambda module, step: {"x": 1.0})
    rows = [json.loads(line) for line in (tmp_path / "throughput.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    seen = set().union(*(row["timing"] for row in rows))
    assert seen == {
        "data_wait", "collate", "forward", "backward", "optimizer", "logging", "checkpoint", "evaluation",
    }  # fmt: skip
    assert all(t["p50_ms"] <= t["p95_ms"] for row in rows for t in row["timing"].values())
    assert rows[0]["mfu"] is None, "no peak is known of a CPU"
    assert rows[0]["tokens_per_second"] > 0
    assert not any("second" in key or "timing" in key for row in result.history for key in row)
