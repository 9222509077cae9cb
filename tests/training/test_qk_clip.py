"""QK-clip against logits computed one segment and one head at a time, from what the layers were given."""

import itertools
import math

import pytest
import torch

from neobert.config.optimizer import OptimizerConfig
from neobert.model.attention import Attention
from neobert.training.optimizer import build_optimizer
from neobert.training.qk_clip import QkClip
from tests.training import tiny

LAYERS = {"num_hidden_layers": 2}
VARIANTS = {"default": {}, "learned positions": {"rope": False}, "layernorm": {"rms_norm": False}}
HEADS, CHANNELS = 2, 8


def micro_batches(count=2):
    return tiny.source().micro_batches(0, 4 * count, 4, 0, 1)


def attentions(objective):
    return [m for m in objective.modules() if isinstance(m, Attention)]


def turned(x, positions):
    """Rotate-half pairs [len, CHANNELS] as complex numbers."""
    half = CHANNELS // 2
    angles = positions[:, None].double() * 10000.0 ** (-torch.arange(half).double() / half)
    pairs = torch.complex(x[:, :half].double(), x[:, half:].double()) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((pairs.real, pairs.imag), 1)


def reference(objective, batches):
    """[layers, heads]: the largest logit over all pairs of tokens of a segment, in float64."""
    seen = []
    hooks = [
        a.register_forward_pre_hook(lambda a, given: seen.append((a, given[0].detach()))) for a in attentions(objective)
    ]
    largest = {a: [-math.inf] * HEADS for a in attentions(objective)}
    for batch in batches:
        seen.clear()
        objective(batch)
        for attention, x in seen:
            weight = attention.qkv.weight.detach().double()
            q, k = (x.double() @ weight[i * 16 : (i + 1) * 16].T for i in (0, 1))
            for head, (a, b) in itertools.product(range(HEADS), itertools.pairwise(batch["cu_seqlens"].tolist())):
                mine = slice(head * CHANNELS, (head + 1) * CHANNELS)
                parts = q[a:b, mine], k[a:b, mine]
                if objective.model.config.rope:
                    parts = tuple(turned(part, batch["position_ids"][a:b]) for part in parts)
                top = (parts[0] @ parts[1].T).max().item() / math.sqrt(CHANNELS)
                largest[attention][head] = max(largest[attention][head], top)
    for hook in hooks:
        hook.remove()
    return torch.tensor([largest[a] for a in attentions(objective)])


def wide(**changes):
    """A model whose logits are of order one."""
    objective = tiny.objective(**LAYERS, **changes)
    for attention in attentions(objective):
        torch.nn.init.normal_(attention.qkv.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return objective


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_measure_the_largest_logit_of_all_micro_batches(variant, checkpointing, backward):
    objective = wide(**VARIANTS[variant])
    expected = reference(objective, micro_batches())
    QkClip(objective, 1.0)
    objective.model.encoder.gradient_checkpointing = checkpointing
    for batch in micro_batches():
        loss, _ = objective(batch)
        if backward:
            loss.backward()
    torch.testing.assert_close(torch.stack([a.max_logits for a in attentions(objective)]), expected.float())


def test_heads_above_the_threshold_are_scaled_to_it_and_no_others():
    objective = wide()
    largest = reference(objective, micro_batches())
    threshold = largest.flatten().sort().values[1].item() + 0.01  # two of the four heads lie above
    clip = QkClip(objective, threshold)
    before = [a.qkv.weight.detach().clone() for a in attentions(objective)]
    for batch in micro_batches():
        objective(batch)
    clip.apply(torch.tensor(True))
    assert all(torch.isneginf(a.max_logits).all() for a in attentions(objective)), "a step starts anew"
    for attention, weight, tops in zip(attentions(objective), before, largest, strict=True):
        q, k, v = weight.clone().view(3, HEADS, CHANNELS, 16)
        for head, top in enumerate(tops.tolist()):
            q[head] *= min(1.0, threshold / top) ** 0.5
            k[head] *= min(1.0, threshold / top) ** 0.5
        expected = torch.stack((q, k, v)).view(48, 16)
        torch.testing.assert_close(attention.qkv.weight.detach(), expected)
    first = reference(objective, micro_batches())[0]  # later layers' inputs have changed
    torch.testing.assert_close(first, largest[0].clamp_max(threshold), rtol=1e-5, atol=0)


def test_muonclip_is_muon_and_then_the_clip():
    clipped, plain = wide(), wide()
    largest = reference(plain, micro_batches())
    threshold = largest.min().item() * 0.5
    config = {"lr": 0.01, "momentum": 0.9}
    a = build_optimizer(clipped, OptimizerConfig(name="muonclip", qk_clip_threshold=threshold, **config))
    b = build_optimizer(plain, OptimizerConfig(name="muon", **config))
    for objective, optimizer in ((clipped, a), (plain, b)):
        for batch in micro_batches():
            objective(batch)[0].backward()
        optimizer.step()
    for x, y, tops in zip(attentions(clipped), attentions(plain), largest, strict=True):
        factors = (threshold / tops).sqrt().float().repeat_interleave(CHANNELS)
        rows = torch.cat((factors, factors, torch.ones(16)))[:, None]
        torch.testing.assert_close(x.qkv.weight.detach(), y.qkv.weight.detach() * rows)
        torch.testing.assert_close(x.out.weight, y.out.weight)


def test_evaluation_measures_nothing_and_the_model_keeps_nothing():
    objective = wide()
    keys = list(objective.state_dict())
    QkClip(objective, 1.0)
    objective.eval()
    objective(micro_batches()[0])
    assert all(torch.isneginf(a.max_logits).all() for a in attentions(objective))
    assert list(objective.state_dict()) == keys
