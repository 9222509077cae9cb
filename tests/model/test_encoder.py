"""Trap 4, variants, checkpointing, dropout, and transformers' own classes as an independent reference."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import EuroBertConfig, EuroBertModel

from neobert.model.batch import flatten
from neobert.model.encoder import Encoder
from neobert.model.ngpt import normalize_weights

from .builders import PAD, VARIANTS, VOCAB, batch, config, masked_lm


def reference(encoder: Encoder) -> EuroBertModel:
    """transformers' EuroBERT with this encoder's weights, mapped here by hand."""
    c = encoder.config
    theirs = EuroBertModel(
        EuroBertConfig(
            vocab_size=VOCAB,
            hidden_size=c.hidden_size,
            intermediate_size=c.mlp_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            rms_norm_eps=c.norm_eps,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        )
    )
    state = {"embed_tokens.weight": encoder.embeddings.weight, "norm.weight": encoder.norm.weight}
    for i, layer in enumerate(encoder.layers):
        q, k, v = layer.attention.qkv.weight.chunk(3)
        parts = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer.attention.out.weight,
            "mlp.gate_proj": layer.mlp.w1.weight,
            "mlp.up_proj": layer.mlp.w2.weight,
            "mlp.down_proj": layer.mlp.w3.weight,
            "input_layernorm": layer.attention_norm.weight,
            "post_attention_layernorm": layer.mlp_norm.weight,
        }
        state |= {f"layers.{i}.{name}.weight": weight for name, weight in parts.items()}
    theirs.load_state_dict(state)
    return theirs.eval()


def test_hidden_states_equal_transformers_on_padded_input():
    encoder = masked_lm().encoder.eval()
    lengths = [9, 14, 6]
    flat = batch(lengths)
    padded = torch.full((3, 14), PAD)
    mask = torch.zeros_like(padded)
    starts = flat.cu_seqlens.tolist()
    for i, n in enumerate(lengths):
        padded[i, :n] = flat.input_ids[starts[i] : starts[i + 1]]
        mask[i, :n] = 1
    with torch.no_grad():
        theirs = reference(encoder)(input_ids=padded, attention_mask=mask).last_hidden_state[mask.bool()]
        ours = encoder(*flat)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_segments_of_padding_alone_stay_finite(variant):
    model = masked_lm(**VARIANTS[variant])
    for flat in (flatten([torch.full((6,), PAD).numpy()], PAD), batch([5, 0, 3], multiple=16)):
        model.zero_grad()
        logits = model(*flat)
        logits.square().sum().backward()
        assert logits.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_learned_positions_restart_and_padding_has_none():
    encoder = masked_lm(rope=False).encoder
    flat = batch([4, 4], multiple=10)
    plain = encoder.embeddings(flat.input_ids)
    added = encoder.embed(flat.input_ids, flat.position_ids) - plain
    table = encoder.positions.weight
    torch.testing.assert_close(added[:4], table[1:5])
    torch.testing.assert_close(added[4:8], table[1:5])
    assert (added[8:] == 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_changes_nothing(variant):
    model = masked_lm(**VARIANTS[variant]).train()
    flat = batch([9, 14])
    results = []
    for flag in (False, True):
        model.zero_grad()
        model.encoder.gradient_checkpointing = flag
        model(*flat).square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_the_residual_stream_keeps_the_type_it_is_told():
    seen = []
    for flag in (True, False):
        encoder = masked_lm(residual_fp32=flag).encoder
        encoder.layers[1].attention_norm.register_forward_hook(lambda module, args, out: seen.append(out[0].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            assert encoder(*batch([9, 14])).dtype == torch.bfloat16
    assert seen == [torch.float32, torch.bfloat16]


def test_dropout_drops_in_training_only():
    encoder = masked_lm(dropout=0.5).encoder
    flat = batch([9, 14])
    assert not torch.equal(encoder.train()(*flat), encoder(*flat))
    assert torch.equal(encoder.eval()(*flat), encoder(*flat))


def test_ngpt_vectors_are_unit_after_initialisation_and_after_a_step():
    torch.manual_seed(0)
    encoder = Encoder(config(ngpt=True), VOCAB, PAD)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2, weight_decay=0.0)
    encoder(*batch([9, 14])).sum().backward()
    optimizer.step()
    assert (encoder.layers[0].qkv.weight.norm(dim=1) - 1).abs().max() > 1e-4
    normalize_weights(encoder)
    layer = encoder.layers[0]
    for norms in (
        encoder.embeddings.weight.norm(dim=1)[1:],
        layer.qkv.weight.norm(dim=1),
        layer.out.weight.norm(dim=0),
        layer.w2.weight.norm(dim=1),
        layer.w3.weight.norm(dim=0),
        encoder(*batch([9, 14])).norm(dim=1),
    ):
        torch.testing.assert_close(norms, torch.ones_like(norms))
    assert (encoder.embeddings.weight[PAD] == 0).all()


def test_ngpt_block_follows_the_paper():
    """Equations 10-21 of arXiv:2410.01131, written with complex rotations and one head at a time."""
    torch.manual_seed(0)
    encoder = Encoder(config(ngpt=True, num_hidden_layers=1), VOCAB, PAD).double()
    layer, c = encoder.layers[0], encoder.config
    with torch.no_grad():
        for scale in (layer.s_qk, layer.alpha_attention, layer.alpha_mlp, layer.s_u, layer.s_v):
            scale.weight.mul_(1 + 0.3 * torch.randn_like(scale.weight))
    n, d = 9, c.head_dim
    flat = batch([n])
    unit = lambda v: v / v.norm(dim=-1, keepdim=True)  # noqa: E731
    h = unit(encoder.embeddings.weight[flat.input_ids])
    angles = torch.arange(n)[:, None] / c.rope_theta ** (torch.arange(0, d, 2).double() / d)
    turn = torch.polar(torch.ones_like(angles), angles)

    def rotated(v):
        pairs = torch.complex(v[:, : d // 2], v[:, d // 2 :]) * turn
        return torch.cat((pairs.real, pairs.imag), -1)

    q, k, v = (h @ layer.qkv.weight.T).chunk(3, -1)
    s_qk = layer.s_qk.weight * c.hidden_size**0.5
    heads = []
    for i in range(c.num_attention_heads):
        part = slice(i * d, (i + 1) * d)
        queries, keys = unit(rotated(q[:, part])) * s_qk[part], unit(rotated(k[:, part])) * s_qk[part]
        heads.append((queries @ keys.T * d**0.5).softmax(-1) @ v[:, part])
    target = unit(torch.cat(heads, -1) @ layer.out.weight.T)
    h = unit(h + (layer.alpha_attention.weight * 0.05 * c.hidden_size**0.5).abs() * (target - h))
    gate = (h @ layer.w1.weight.T) * layer.s_v.weight * c.hidden_size**0.5
    up = (h @ layer.w2.weight.T) * layer.s_u.weight
    target = unit((gate * gate.sigmoid() * up) @ layer.w3.weight.T)
    h = unit(h + (layer.alpha_mlp.weight * 0.05 * c.hidden_size**0.5).abs() * (target - h))
    torch.testing.assert_close(encoder(*flat), h, atol=1e-5, rtol=1e-5)


def test_two_thirds_rule_and_padded_vocabulary():
    assert config(intermediate_size=3072).mlp_size == 2048
    assert config(intermediate_size=100).mlp_size == 72
    assert config(intermediate_size=100, hidden_act="gelu").mlp_size == 100
    assert config().padded_vocab_size(31002) == 31104
    assert config(vocab_size=40000).padded_vocab_size(31002) == 40000


def test_one_graph_and_no_recompilation_over_varied_batches():
    model = masked_lm()
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for i, lengths in enumerate(([10, 20, 2], [16, 16], [8, 8, 8, 8], [1, 31], [5] * 6 + [2])):
        flat = batch(lengths, seed=i)
        torch._dynamo.mark_dynamic(flat.cu_seqlens, 0)
        compiled(*flat[:3], 32)
    assert counter.frame_count == 1
