"""Trap 6: the masked-only, chunked loss is the full-logits loss, in value and gradient."""

import math

import pytest
import torch
import torch.nn.functional as F

from neobert.training import objective as module
from neobert.training.masking import IGNORED
from tests.training import tiny


def plain(objective, batch):
    """Full logits of every token, torch's own cross-entropy: the reference."""
    model = objective.model
    logits = model(batch["input_ids"], batch["position_ids"], batch["cu_seqlens"], batch["max_seqlen"])
    labels = torch.full((len(logits),), IGNORED)
    kept = batch["labels"] != IGNORED
    labels[batch["masked_positions"][kept]] = batch["labels"][kept]
    return F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)


def batch_with(masked):
    """A batch that predicts `masked` tokens (None: as many as usual)."""
    batch = tiny.source().micro_batches(0, 4, 4, 0, 1)[0]
    if masked is not None:
        real = torch.nonzero(batch["labels"] != IGNORED)[masked:]
        batch["labels"][real] = IGNORED
    return batch


@pytest.mark.parametrize("masked", [0, 1, None])
@pytest.mark.parametrize("chunk", [3, 8192])
@pytest.mark.parametrize(
    "model", [{}, {"tie_word_embeddings": False, "decoder_bias": True}, {"ngpt": True}], ids=["tied", "bias", "ngpt"]
)
@pytest.mark.parametrize("masked_only", [True, False])
def test_loss_and_gradients_equal_full_logits(masked, chunk, model, masked_only, monkeypatch):
    monkeypatch.setitem(module.CHUNK, "cpu", chunk)
    objective, batch = tiny.objective(**model), batch_with(masked)
    objective.masked_logits_only = masked_only
    reference = plain(objective, batch)
    reference.backward()
    expected = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    loss, metrics = objective(batch)
    loss.backward()
    assert metrics == {}
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-6)
    for name, parameter in objective.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-5, msg=name)


def test_evaluation_takes_no_gradient_and_counts_hits():
    objective, batch = tiny.objective(), batch_with(None)
    with torch.no_grad():
        loss, metrics = objective.eval()(batch)
        logits = objective.model(batch["input_ids"], batch["position_ids"], batch["cu_seqlens"], batch["max_seqlen"])
    guesses = logits.argmax(-1)[batch["masked_positions"]]
    assert metrics["accuracy"] == (guesses == batch["labels"]).sum()
    torch.testing.assert_close(loss, plain(objective, batch), atol=1e-4, rtol=1e-6)


def test_bf16_loss_is_near_and_its_sums_are_fp32():
    objective, batch = tiny.objective(), batch_with(None)
    exact = objective(batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(batch)[0]
    assert loss.dtype == torch.float32
    assert math.isclose(loss.item(), exact.item(), rel_tol=1e-2)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in objective.parameters() if p.grad is not None)


def test_flops_equal_torchs_own_counter():
    from torch.utils.flop_counter import FlopCounterMode

    # Segments that fill whole rows, so that the padded fallback of attention computes no more than they need.
    objective = tiny.objective(hidden_size=32, num_hidden_layers=2)
    length, segments = 16, 4
    tokens = length * segments
    batch = {
        "input_ids": torch.randint(4, tiny.VOCAB, (tokens,)),
        "position_ids": torch.arange(length).repeat(segments),
        "cu_seqlens": torch.arange(0, tokens + 1, length, dtype=torch.int32),
        "max_seqlen": length,
        "masked_positions": torch.arange(0, tokens, 5),
        "labels": torch.arange(4, 4 + len(range(0, tokens, 5))),
    }
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        objective(batch)[0].backward()
    host = {"count": len(batch["labels"]), "tokens": tokens, "squared_lengths": segments * length**2}
    assert counter.get_total_flops() == objective.train_flops(host)
