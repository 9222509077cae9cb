"""The four optimizers: which parameters each rule gets, against torch's own, and what they refuse."""

import copy

import pytest
import torch

from neobert.config.contrastive import EmbeddingWarmupConfig
from neobert.config.optimizer import OptimizerConfig
from neobert.config.runtime import RuntimeConfig
from neobert.config.schema import parse
from neobert.errors import PipelineError
from neobert.training.muon import Muon
from neobert.training.optimizer import build_optimizer, hidden_matrices, state_elements
from neobert.training.preflight import bytes_wanted
from neobert.training.step import initialise_state
from tests.training import tiny

NAMES = ["adamw", "adam", "muon", "muonclip"]
SHAPES = {"rms_norm": False, "tie_word_embeddings": False, "rope": False, "decoder_bias": True}


def with_gradients(objective, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in objective.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return objective


@pytest.mark.parametrize("name", NAMES)
def test_only_weight_matrices_are_decayed(name):
    """Measured, not read from the groups: without gradients an update is the decay alone."""
    objective = tiny.objective(**SHAPES)
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {n: p.detach().clone() for n, p in objective.named_parameters()}
    build_optimizer(objective, OptimizerConfig(name=name, lr=0.1, weight_decay=0.5)).step()
    changed = {n for n, p in objective.named_parameters() if not torch.equal(p, before[n])}
    matrices = {n for n in before if "attention." in n or "mlp." in n or n == "model.decoder.weight"}
    assert changed == {n for n in matrices if before[n].ndim == 2}
    if name != "adam":  # Adam's is scaled like a gradient
        for key, parameter in objective.named_parameters():
            factor = 1 - 0.1 * 0.5 if key in changed else 1.0
            torch.testing.assert_close(parameter.detach(), before[key] * factor)


@pytest.mark.parametrize("name", ["muon", "muonclip"])
@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_the_matrices_of_the_layers_and_nothing_else(name, tied):
    objective = tiny.objective(tie_word_embeddings=tied, rope=False)
    optimizer = build_optimizer(objective, OptimizerConfig(name=name))
    assert isinstance(optimizer, Muon)
    initialise_state(optimizer)
    kept = {n: set(optimizer.state[p]) for n, p in objective.named_parameters()}
    layer = "model.encoder.layers.0"
    mine = {f"{layer}.attention.qkv", f"{layer}.attention.out", *(f"{layer}.mlp.{w}" for w in ("w1", "w2", "w3"))}
    assert {n.removesuffix(".weight") for n, keys in kept.items() if keys == {"momentum_buffer"}} == mine
    assert all(keys == {"step", "exp_avg", "exp_avg_sq"} for n, keys in kept.items() if n[:-7] not in mine)


@pytest.mark.parametrize(("name", "peer"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_adam_and_adamw_are_torchs(name, peer):
    """Adam's decay goes through the moments, AdamW's beside them."""
    ours, theirs = tiny.objective(), tiny.objective()
    config = OptimizerConfig(name=name, lr=0.01, weight_decay=0.1)
    decayed = {id(p) for part in hidden_matrices(theirs) for p in part}
    groups = [
        {"params": [p for p in theirs.parameters() if id(p) in decayed], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if id(p) not in decayed], "weight_decay": 0.0},
    ]
    a, b = build_optimizer(ours, config), peer(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for step in range(3):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        a.step()
        b.step()
    for (key, x), y in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(x, y, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_with_found_inf_leaves_weights_and_state_alone(name):
    objective = with_gradients(tiny.objective())
    optimizer = build_optimizer(objective, OptimizerConfig(name=name, lr=0.01))
    optimizer.step()
    for parameter in objective.parameters():
        parameter.grad.fill_(float("nan"))
    before = copy.deepcopy([objective.state_dict(), [dict(s) for s in optimizer.state.values()]])
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    after = [objective.state_dict(), [dict(s) for s in optimizer.state.values()]]
    assert tiny.same_state(before[0], after[0])
    assert all(tiny.same_state(a, b) for a, b in zip(before[1], after[1], strict=True))
    optimizer.found_inf = torch.zeros(())
    with_gradients(objective)
    optimizer.step()
    assert not tiny.same_state(before[0], objective.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_state_made_before_the_first_step_changes_nothing(name):
    """Adam's decay is part of its gradient, so that even a gradient of zero moves its moments."""
    fresh, prepared = tiny.objective(), tiny.objective()
    config = OptimizerConfig(name=name, lr=0.01, weight_decay=0.1)
    a, b = build_optimizer(fresh, config), build_optimizer(prepared, config)
    initialise_state(b)
    for step in range(2):
        with_gradients(fresh, step)
        with_gradients(prepared, step)
        a.step()
        b.step()
    assert tiny.same_state(fresh.state_dict(), prepared.state_dict())


def test_muon_with_a_rate_of_its_own_for_adamw():
    objective = with_gradients(tiny.objective())
    optimizer = build_optimizer(objective, OptimizerConfig(name="muon", lr=0.02, adamw_lr=0.005))
    assert {g["lr"]: g.get("lr_ratio", 1.0) for g in optimizer.param_groups} == {0.02: 1.0, 0.005: 0.25}


def test_the_disk_estimate_knows_each_optimizers_state(tmp_path):
    objective = tiny.objective()
    for name in NAMES:
        config = OptimizerConfig(name=name)
        optimizer = build_optimizer(tiny.objective(), config)
        initialise_state(optimizer)
        kept = sum(v.numel() for s in optimizer.state.values() for k, v in s.items() if k != "step")
        assert state_elements(objective, config) == kept
        weights = sum(p.numel() for p in objective.parameters())
        assert bytes_wanted(objective, config, RuntimeConfig(save_total_limit=2)) == 3 * 4 * (2 * weights + kept)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"momentum": 0.9}, "o.momentum: 0.9 has no meaning for optimizer.name adamw; remove it"),
        ({"name": "adam", "ns_steps": 3}, "o.ns_steps: 3 has no meaning for optimizer.name adam; remove it"),
        (
            {"name": "muon", "qk_clip_threshold": 50.0},
            "o.qk_clip_threshold: 50.0 has no meaning for optimizer.name muon; remove it",
        ),
        ({"name": "sgd"}, "o.name: 'sgd' is not one of adamw, adam, muon, muonclip"),
        ({"name": "muon", "momentum": 1.0}, "o.momentum: 1.0 must be less than 1"),
    ],
)
def test_keys_of_another_rule_are_refused(given, message):
    found: list[str] = []
    parse(OptimizerConfig, given, "o", found)
    assert found == [message]


def test_what_has_no_hidden_matrices_is_refused():
    found: list[str] = []
    parse(EmbeddingWarmupConfig, {"optimizer": {"name": "muon"}}, "w", found)
    assert len(found) == 1
    assert found[0].startswith("w.optimizer.name: 'muon' is for the matrices of an encoder")
    with pytest.raises(PipelineError, match="of an encoder, and there is none to train"):
        build_optimizer(torch.nn.Embedding(4, 2), OptimizerConfig(name="muon"))
    with pytest.raises(PipelineError, match=r"muonclip.*nGPT normalises"):
        build_optimizer(tiny.objective(ngpt=True), OptimizerConfig(name="muonclip"))


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_ngpt_trains_with_every_other_rule(tmp_path, name):
    result = tiny.run(tmp_path, {"max_steps": 2}, model={"ngpt": True}, optimizer={"name": name})
    rows = result.state_dict["model.encoder.layers.0.qkv.weight"]
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
