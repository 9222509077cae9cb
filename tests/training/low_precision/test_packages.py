"""Transformer Engine and Quartet-II behind stand-ins: weights, names and arguments are passed on as their APIs ask."""

import contextlib
import enum
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from neobert.config.quartet2 import Quartet2Config
from neobert.config.transformer_engine import TransformerEngineConfig
from neobert.errors import PipelineError
from neobert.training.low_precision.convert import convert
from tests.training import tiny

CPU = torch.device("cpu")
MODEL = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 192}


class Recorded:
    """A recipe class that keeps its arguments."""

    def __init__(self, **arguments):
        self.arguments = arguments


class Engine:
    """As much of Transformer Engine as is used; its layers refuse to run outside of its autocast."""

    def __init__(self):
        self.active, self.entered = None, 0
        engine = self

        class Linear(torch.nn.Module):
            def __init__(self, in_features, out_features, bias=True, params_dtype=None, device="cuda"):
                super().__init__()
                self.weight = torch.nn.Parameter(
                    torch.empty(out_features, in_features, dtype=params_dtype, device=device)
                )
                self.made_with = (in_features, out_features, bias, params_dtype)

            def get_extra_state(self):
                return torch.zeros(3, dtype=torch.uint8)

            def set_extra_state(self, state):
                raise AssertionError("nothing to load")

            def forward(self, x):
                assert engine.active is not None, "outside of autocast"
                return F.linear(x, self.weight) * 0.5

        self.Linear = Linear

    @contextlib.contextmanager
    def autocast(self, enabled=True, recipe=None):
        assert enabled
        self.active, self.entered = recipe, self.entered + 1
        yield
        self.active = None


@pytest.fixture
def engine(monkeypatch):
    engine = Engine()
    pytorch = types.ModuleType("transformer_engine.pytorch")
    pytorch.Linear, pytorch.autocast = engine.Linear, engine.autocast
    recipe = types.ModuleType("transformer_engine.common.recipe")
    recipe.Format = enum.Enum("Format", ["E4M3", "HYBRID"])
    for name in ("DelayedScaling", "Float8CurrentScaling", "MXFP8BlockScaling", "NVFP4BlockScaling"):
        setattr(recipe, name, type(name, (Recorded,), {}))
    common = types.ModuleType("transformer_engine.common")
    common.recipe = recipe
    package = types.ModuleType("transformer_engine")
    package.pytorch, package.common = pytorch, common
    for module in (package, pytorch, common, recipe):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return engine


def test_transformer_engine_layers_take_the_weights_and_run_in_its_autocast(engine, tmp_path):
    config = TransformerEngineConfig(recipe="mxfp8", fp8_format="E4M3")
    plain = tiny.objective(**MODEL)
    result = tiny.run(
        tmp_path, {"max_steps": 2, "eval_steps": 1}, model=MODEL, low_precision=config, evaluate=lambda m, _: {}
    )
    assert result.state_dict.keys() == plain.state_dict().keys(), "no extra state"
    assert engine.entered == 2 * 2 + 2, "each forward of two micro-batches, and each evaluation"
    assert not tiny.same_state(result.state_dict, plain.state_dict())


def test_transformer_engine_layers_are_made_as_the_linear_ones_were(engine):
    plain, objective = tiny.objective(**MODEL), tiny.objective(**MODEL)
    before = dict(objective.named_parameters())
    conversion = convert(objective, TransformerEngineConfig(), device=CPU, sharded=False)
    assert not conversion.fullgraph
    made = {n: m for n, m in objective.named_modules() if isinstance(m, engine.Linear)}
    assert len(made) == 9
    for name, layer in made.items():
        linear = plain.get_submodule(name)
        assert layer.made_with == (linear.in_features, linear.out_features, False, torch.float32)
    assert {n: id(p) for n, p in objective.named_parameters()} == {n: id(p) for n, p in before.items()}
    objective.load_state_dict(plain.state_dict())
    with conversion.autocast():
        assert type(engine.active).__name__ == "Float8CurrentScaling"
        assert engine.active.arguments == {}


@pytest.mark.parametrize(
    ("changes", "recipe", "arguments"),
    [
        ({"recipe": "fp8_delayed", "fp8_format": "HYBRID"}, "DelayedScaling", {"fp8_format": "HYBRID"}),
        ({"recipe": "fp8_current", "fp8_format": "E4M3"}, "Float8CurrentScaling", {"fp8_format": "E4M3"}),
        ({"recipe": "mxfp8"}, "MXFP8BlockScaling", {}),
        (
            {"recipe": "nvfp4", "disable_rht": True},
            "NVFP4BlockScaling",
            {"disable_rht": True, "disable_stochastic_rounding": False, "disable_2d_quantization": False},
        ),
    ],
)
def test_transformer_engines_recipes_get_their_arguments(engine, changes, recipe, arguments):
    from neobert.training.low_precision.te import make_recipe

    made = make_recipe(TransformerEngineConfig(**changes))
    assert type(made).__name__ == recipe
    assert {k: getattr(v, "name", v) for k, v in made.arguments.items()} == arguments


@pytest.fixture
def quartet(monkeypatch):
    made = []

    class Quartet_II_linear(torch.nn.Linear):
        """As strict as the published one: bf16 only, batches of sequences, buffers that would be saved."""

        def __init__(self, *args, four_over_six=False, dtype=torch.bfloat16, **kwargs):
            super().__init__(*args, dtype=dtype, **kwargs)
            assert dtype == torch.bfloat16
            self.four_over_six = four_over_six
            self.register_buffer("had", torch.ones(2, dtype=dtype))
            made.append(self)

        def forward(self, x, disable_backward_quant=False):
            batch, sequence, _ = x.shape
            assert x.dtype == self.weight.dtype == self.had.dtype == torch.bfloat16
            assert not disable_backward_quant
            return F.linear(x, self.weight[...]).reshape(batch, sequence, -1)

    module = types.ModuleType("quartet2.linear")
    module.Quartet_II_linear = Quartet_II_linear
    monkeypatch.setitem(sys.modules, "quartet2", types.ModuleType("quartet2"))
    monkeypatch.setitem(sys.modules, "quartet2.linear", module)
    return types.SimpleNamespace(layer=Quartet_II_linear, made=made)


@pytest.mark.parametrize("compiled", [False, True])
def test_quartet_layers_train_the_fp32_weights_in_bf16_products(quartet, tmp_path, compiled):
    torch._dynamo.reset()
    plain = tiny.objective(**MODEL)
    steps = {"max_steps": 2, "torch_compile": compiled, "torch_compile_backend": "eager"}
    result = tiny.run(tmp_path, steps, model=MODEL, low_precision=Quartet2Config(four_over_six=False))
    assert len(quartet.made) == 9
    assert not any(layer.four_over_six for layer in quartet.made)
    assert result.state_dict.keys() == plain.state_dict().keys(), "no buffers of kernels"
    assert {v.dtype for v in result.state_dict.values()} == {torch.float32}
    full = tiny.run(tmp_path / "full", {"max_steps": 2}, model=MODEL)
    assert result.history[-1]["loss"] == pytest.approx(full.history[-1]["loss"], rel=1e-2)
    for key, start in plain.state_dict().items():
        if key.endswith(("w1.weight", "qkv.weight")):
            assert not torch.equal(result.state_dict[key], start), key
            assert not torch.equal(result.state_dict[key], result.state_dict[key].bfloat16().float()), key


def test_quartet_layers_of_other_sizes_are_kept(quartet):
    objective = tiny.objective(**{**MODEL, "hidden_act": "gelu", "intermediate_size": 192})
    convert(objective, Quartet2Config(), device=CPU, sharded=False)
    assert sorted(layer.out_features for layer in quartet.made) == [128, 128, 384], "192 is no multiple of 128"
    with pytest.raises(PipelineError, match="multiples of 256"):
        convert(tiny.objective(**MODEL), Quartet2Config(required_dim_multiple=256), device=CPU, sharded=False)
