"""Muon against torch.optim.Muon and the singular value decomposition; its state in a checkpoint."""

import pytest
import torch

from neobert.config.optimizer import MuonSettings, OptimizerConfig
from neobert.training.muon import Muon, shape_factor
from neobert.training.optimizer import build_optimizer
from neobert.training.signals import Preempted
from tests.training import tiny
from tests.training.poison import Poisonable, Poisoned
from tests.training.test_resume import Interrupting

SHAPES = [(12, 12), (20, 12), (12, 20), (12, 12)]


def parameters(seed=0):
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def muon(given, parts=1, lr=0.1, decay=0.0, **settings):
    rest = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr, fused=True)
    return Muon([{"params": given, "lr": lr, "weight_decay": decay, "parts": parts}], rest, MuonSettings(**settings))


@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_it_is_torchs_muon(nesterov, adjust_lr_fn):
    """Theirs computes in bf16 everywhere, hence the tolerance: a hundredth of an update."""
    ours, theirs = parameters(), parameters()
    settings = {"momentum": 0.9, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
    a = muon(ours, decay=0.3, **settings)
    b = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.3, **settings)
    for step in range(4):
        torch.manual_seed(step)
        for x, y in zip(ours, theirs, strict=True):
            x.grad = torch.randn(x.shape)
            y.grad = x.grad.clone()
        a.step()
        b.step()
    for x, y, start in zip(ours, theirs, parameters(), strict=True):
        assert (x - y).norm() < 0.02 * (x - start).norm()
        torch.testing.assert_close(a.state[x]["momentum_buffer"], b.state[y]["momentum_buffer"])


def test_the_first_update_is_the_gradients_polar_factor():
    given = parameters()
    before = [p.detach().clone() for p in given]
    for parameter in given:
        parameter.grad = torch.randn(parameter.shape)
    muon(given, orthogonalization="polar_express", ns_steps=12).step()
    for parameter, start in zip(given, before, strict=True):
        u, _, vh = torch.linalg.svd(parameter.grad, full_matrices=False)
        update = u @ vh
        assert update.square().mean().sqrt() * shape_factor("match_rms_adamw", *update.shape) == pytest.approx(0.2)
        expected = start - 0.1 * 0.2 * max(update.shape) ** 0.5 * update
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-5, rtol=1e-4)


def test_queries_keys_and_values_are_orthogonalised_each_on_its_own():
    """A value gradient a thousand times the others' leaves them updates of the same size."""
    fused = torch.nn.Parameter(torch.zeros(36, 12))
    gradients = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(0))
    fused.grad = (gradients * torch.tensor([1.0, 1.0, 1000.0])[:, None, None]).view(36, 12)
    alone = [torch.nn.Parameter(torch.zeros(12, 12)) for _ in range(3)]
    for parameter, part in zip(alone, fused.grad.split(12), strict=True):
        parameter.grad = part.clone()
    muon([fused], parts=3).step()
    muon(alone).step()
    torch.testing.assert_close(fused.detach(), torch.cat([p.detach() for p in alone]))


def test_the_encoders_projection_is_split_in_three():
    objective = tiny.objective()
    optimizer = build_optimizer(objective, OptimizerConfig(name="muon"))
    fused = objective.model.encoder.layers[0].attention.qkv.weight
    parts = {id(p): group["parts"] for group in optimizer.param_groups[:2] for p in group["params"]}
    assert parts.pop(id(fused)) == 3
    assert set(parts.values()) == {1}


@pytest.mark.parametrize("name", ["adam", "muon", "muonclip"])
def test_a_resumed_run_is_bitwise_the_undisturbed_one(tmp_path, name):
    optimizer = {"name": name} | ({"qk_clip_threshold": 0.005} if name == "muonclip" else {})
    undisturbed = tiny.run(tmp_path / "a", optimizer=optimizer, runtime={"num_workers": 0})
    for step in (3, 6):
        with pytest.raises(Preempted):
            tiny.run(tmp_path / "b", optimizer=optimizer, source=Interrupting(step), runtime={"num_workers": 0})
    resumed = tiny.run(tmp_path / "b", optimizer=optimizer)
    assert tiny.same_state(undisturbed.state_dict, resumed.state_dict)
    a, b = (tiny.tensors(tmp_path / run / "checkpoints" / "12") for run in "ab")
    assert tiny.same_state(a, b)
    assert not any("max_logits" in key for key in a), "what is measured is no state"
    assert ("optimizer.model.encoder.layers.0.mlp.w1.weight.momentum_buffer" in a) == (name != "adam")


@pytest.mark.parametrize("name", ["adam", "muon", "muonclip"])
def test_a_skipped_step_changes_nothing(tmp_path, name):
    """Between two sound steps, so that what it leaves in the moments would show."""
    optimizer = {"name": name} | ({"qk_clip_threshold": 0.005} if name == "muonclip" else {})
    constant = {"name": "constant"}
    skipped = tiny.run(
        tmp_path / "a",
        {"max_steps": 2},
        {"logging_steps": 1},
        constant,
        objective=Poisonable(),
        source=Poisoned({1}),
        optimizer=optimizer,
    )
    one = tiny.run(
        tmp_path / "b", {"max_steps": 1}, {}, constant, None, optimizer, objective=Poisonable(), source=Poisoned(set())
    )
    assert [row["skipped"] for row in skipped.history] == [0, 1]
    assert tiny.same_state(skipped.state_dict, one.state_dict)
    a, b = tiny.tensors(tmp_path / "a" / "checkpoints" / "2"), tiny.tensors(tmp_path / "b" / "checkpoints" / "1")
    assert all(torch.equal(a[key], b[key]) for key in b if key.startswith("optimizer."))


def test_stacks_are_bounded(monkeypatch):
    ours, bounded = parameters(), parameters()
    for x, y in zip(ours, bounded, strict=True):
        x.grad = torch.randn(x.shape)
        y.grad = x.grad.clone()
    muon(ours).step()
    monkeypatch.setattr("neobert.training.muon.STACKED", 100)
    muon(bounded).step()
    for x, y in zip(ours, bounded, strict=True):
        torch.testing.assert_close(x, y)
