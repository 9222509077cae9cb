"""Trap 2: rotate-half and interleaved pairings differ; compare with complex numbers and with transformers."""

import torch
from transformers.models.llama.modeling_llama import rotate_half

from neobert.model.rope import RotaryEmbedding, apply_rope, rope_frequencies

T, N, D, THETA = 11, 3, 8, 10000.0


def test_rotation_equals_complex_multiplication():
    x = torch.randn(T, N, D, dtype=torch.float64)
    positions = torch.randint(0, 500, (T,))
    angles = positions[:, None].double() * rope_frequencies(D, THETA).double()
    turned = apply_rope(x, angles.cos(), angles.sin())
    pairs = torch.complex(x[..., : D // 2], x[..., D // 2 :]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(turned, torch.cat((pairs.real, pairs.imag), -1))


def test_rotation_equals_transformers_rotate_half():
    x = torch.randn(T, N, D)
    cos, sin = RotaryEmbedding(D, THETA)(torch.arange(T))
    wide_cos, wide_sin = torch.cat((cos, cos), -1)[:, None], torch.cat((sin, sin), -1)[:, None]
    torch.testing.assert_close(apply_rope(x, cos, sin), x * wide_cos + rotate_half(x) * wide_sin)


def test_interleaved_pairs_give_something_else():
    x = torch.randn(T, N, D)
    cos, sin = RotaryEmbedding(D, THETA)(torch.arange(T))
    pairs = torch.view_as_complex(x.reshape(T, N, D // 2, 2)) * torch.complex(cos, sin)[:, None]
    assert (torch.view_as_real(pairs).flatten(2) - apply_rope(x, cos, sin)).abs().max() > 0.1


def test_frequencies_survive_a_cast_and_the_meta_device():
    expected = rope_frequencies(D, THETA)
    assert torch.equal(RotaryEmbedding(D, THETA).bfloat16().inv_freq, expected)
    with torch.device("meta"):
        rotary = RotaryEmbedding(D, THETA)
    assert torch.equal(rotary.to("meta").to_empty(device="cpu").inv_freq, expected)
    assert RotaryEmbedding(D, THETA).state_dict() == {}
