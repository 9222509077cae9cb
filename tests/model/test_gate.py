import pytest
import torch

from neobert.errors import PipelineError
from neobert.model import encoder as encoder_module
from neobert.model.gate import packing_difference, packing_gate

from .builders import VARIANTS, batch, masked_lm


@pytest.mark.parametrize("variant", VARIANTS)
def test_correct_packing_passes_and_leaves_the_mode(variant):
    encoder = masked_lm(dropout=0.3, **VARIANTS[variant]).encoder.train()
    assert packing_gate(encoder, batch([9, 14, 6, 1, 20], multiple=64)) < 1e-5
    assert encoder.training


def test_a_leak_between_segments_is_refused(monkeypatch):
    encoder = masked_lm().encoder
    honest = encoder_module.make_plan

    def leaking(config, x, cu_seqlens, max_seqlen, angles):
        joined = torch.tensor([0, len(x)], dtype=torch.int32)
        return honest(config, x, joined, max_seqlen, angles)

    monkeypatch.setattr(encoder_module, "make_plan", leaking)
    with pytest.raises(PipelineError, match="packing gate"):
        packing_gate(encoder, batch([9, 14, 6]))


def test_learned_positions_that_do_not_restart_are_refused():
    encoder = masked_lm(rope=False).encoder
    flat = batch([9, 14, 6])
    running = flat._replace(position_ids=torch.arange(len(flat.input_ids)))
    # The segments alone would carry the same wrong positions, so the gate gives them their own.
    assert packing_difference(encoder, flat) < 1e-5
    with pytest.raises(PipelineError, match="packing gate"):
        packing_gate(encoder, running)
