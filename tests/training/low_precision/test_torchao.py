"""TorchAO's recipes on a CPU: the numbers they compute, that every layer is used, that weights stay plain fp32."""

import pytest
import torch
from torch._dynamo.utils import counters

from neobert.config.torchao import TorchaoConfig
from neobert.errors import PipelineError
from neobert.training.low_precision.convert import convert
from neobert.training.signals import Preempted
from neobert.training.source import HOST_KEYS
from tests.training import tiny
from tests.training.test_resume import Interrupting

pytest.importorskip("torchao")
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 96}
FLOAT8 = ["float8_tensorwise", "float8_rowwise", "float8_rowwise_with_gw_hp"]
CPU = torch.device("cpu")


def converted(recipe: str, **model):
    objective = tiny.objective(**{**MODEL, **model})
    convert(objective, TorchaoConfig(recipe=recipe), device=CPU, sharded=False)
    return objective


def inputs():
    batch = tiny.source().micro_batches(0, 8, 4, 0, 1)[0]
    return {key: value for key, value in batch.items() if key not in HOST_KEYS}


def rounded(x: torch.Tensor, top: float, dtype: torch.dtype, dims: tuple[int, ...], powers_of_two: bool):
    """`x` scaled so that its largest value over `dims` is the format's, rounded, and scaled back."""
    scale = (top / x.abs().amax(dims, keepdim=True).double()).float()
    if powers_of_two:
        scale = torch.exp2(torch.floor(torch.log2(scale)))
    return (x * scale).clamp(-top, top).to(dtype).float() / scale


def e4m3(x, dims=(0, 1), powers_of_two=False):
    return rounded(x, 448.0, torch.float8_e4m3fn, dims, powers_of_two)


def e5m2(x):
    return rounded(x, 57344.0, torch.float8_e5m2, (0, 1), False)


def tensorwise(x, w, g):
    return e4m3(x) @ e4m3(w).T, e5m2(g) @ e4m3(w), e5m2(g).T @ e4m3(x)


def rowwise(x, w, g):
    def inner(t, dim):  # one scale for each row of the product's operand
        return e4m3(t, (dim,), powers_of_two=True)

    return inner(x, 1) @ inner(w, 1).T, inner(g, 1) @ inner(w, 0), inner(g, 0).T @ inner(x, 0)


def rowwise_with_gw_hp(x, w, g):
    def rows(t, dims=(1,)):
        return e4m3(t, dims, powers_of_two=True)

    return rows(x) @ rows(w).T, rows(g) @ rows(w, (0, 1)), g.T @ x


E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E4M3 = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def floor(largest, values):
    """OCP's rule: the power of two of the block's largest value over that of the format's."""
    return torch.floor(torch.log2(largest)) - torch.floor(torch.log2(values.max()))


def rceil(largest, values):
    return torch.ceil(torch.log2(largest / values.max()))


def blocks(x: torch.Tensor, values: torch.Tensor, rule) -> torch.Tensor:
    """Blocks of 32 along the last dimension, each over a power of two, rounded to the nearest of `values` (>= 0)."""
    block = x.reshape(-1, 32)
    power = torch.exp2(rule(block.abs().amax(1, keepdim=True), values))
    nearest = values[((block / power).abs()[..., None] - values).abs().argmin(-1)]
    return (nearest * block.sign() * power).reshape(x.shape)


def mx(values):
    def products(x, w, g):
        def inner(t):
            return blocks(t, values, floor)

        return inner(x) @ inner(w).T, inner(g) @ inner(w.T).T, inner(g.T) @ inner(x.T).T

    return products


def quantization_aware(x, w, g):
    qx, qw = blocks(x, E2M1, rceil), blocks(w, E2M1, rceil)
    return qx @ qw.T, g @ qw, g.T @ qx


REFERENCES = {
    "float8_tensorwise": tensorwise,
    "float8_rowwise": rowwise,
    "float8_rowwise_with_gw_hp": rowwise_with_gw_hp,
    "mxfp8_emulated": mx(E4M3),
    "mxfp4_emulated": mx(E2M1),
    "mxfp4_qat": quantization_aware,
}


@pytest.mark.parametrize("recipe", REFERENCES)
def test_the_three_products_are_those_of_rounded_operands(recipe):
    layer = converted(recipe).model.encoder.layers[1].mlp.w1
    torch.manual_seed(1)
    x, g = torch.randn(64, 32, requires_grad=True), torch.randn(64, layer.out_features)
    y = layer(x)
    y.backward(g)
    expected = REFERENCES[recipe](x.detach(), layer.weight.detach(), g)
    for got, reference in zip((y.detach(), x.grad, layer.weight.grad), expected, strict=True):
        # A value halfway between two of the format may go either way; rounding itself is 4% (e4m3) to 16% (e2m1).
        assert (got - reference).norm() / reference.norm() < 2e-3
    exact = x @ layer.weight.T
    assert (y - exact).norm() / exact.norm() > 1e-2, "the layer must not compute in full precision"


@pytest.mark.parametrize("model", [{}, {"hidden_act": "gelu"}, {"ngpt": True}], ids=["swiglu", "gelu", "ngpt"])
@pytest.mark.parametrize("recipe", ["float8_rowwise", "mxfp8_emulated"])
def test_every_converted_layer_computes_and_weights_stay_as_they_were(recipe, model):
    plain, objective = tiny.objective(**{**MODEL, **model}), converted(recipe, **model)
    swapped = {n: m for n, m in objective.named_modules() if type(m).__name__ in ("Float8Linear", "LowPrecisionLinear")}
    linear = [n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear)]
    assert list(swapped) == linear[1:-1], "all but the first and the decoder"
    calls = []
    for name, layer in swapped.items():
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    loss, _ = objective(inputs())
    loss.backward()
    assert sorted(calls) == sorted(swapped)
    assert loss.item() != plain(inputs())[0].item()
    assert tiny.same_state(plain.state_dict(), objective.state_dict())
    assert all(type(v) is torch.Tensor for v in objective.state_dict().values())
    assert {p.grad.dtype for p in objective.parameters()} == {torch.float32}


@pytest.mark.parametrize("recipe", REFERENCES)
def test_under_autocast_products_are_bf16_and_the_weights_gradient_fp32(recipe):
    layer = converted(recipe).model.encoder.layers[1].mlp.w1
    x = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, layer.weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("recipe", [*FLOAT8, "mxfp8_emulated"])
def test_compiled_it_is_one_graph_with_the_eager_losses(recipe, tmp_path):
    config, steps, model = TorchaoConfig(recipe=recipe), {"max_steps": 4}, {**MODEL, "num_hidden_layers": 1}
    torch._dynamo.reset()
    counters.clear()
    compile_ = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    compiled = tiny.run(tmp_path / "a", {**steps, **compile_}, model=model, low_precision=config)
    assert counters["stats"]["unique_graphs"] == 1
    eager = tiny.run(tmp_path / "b", steps, model=model, low_precision=config)
    for a, b in zip(compiled.history, eager.history, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)


@pytest.mark.parametrize("recipe", ["float8_tensorwise", "mxfp8_emulated"])
def test_it_learns_like_full_precision_and_resumes_bitwise(recipe, tmp_path):
    config, run = TorchaoConfig(recipe=recipe), {"model": {**MODEL, "dropout": 0.1}, "runtime": {"num_workers": 0}}
    plain = tiny.run(tmp_path / "plain", **run)
    undisturbed = tiny.run(tmp_path / "a", **run, low_precision=config)
    with pytest.raises(Preempted):
        tiny.run(tmp_path / "b", **run, source=Interrupting(5), low_precision=config)
    resumed = tiny.run(tmp_path / "b", **run, low_precision=config)
    assert tiny.same_state(undisturbed.state_dict, resumed.state_dict)
    assert undisturbed.history == resumed.history
    assert undisturbed.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"], rel=2e-2)
    assert undisturbed.history != plain.history
    assert (
        tiny.tensors(tmp_path / "a" / "checkpoints" / "12").keys()
        == tiny.tensors(tmp_path / "plain" / "checkpoints" / "12").keys()
    )


def test_filters():
    def names(**changes):
        objective = tiny.objective(**MODEL)
        convert(objective, TorchaoConfig(**changes), device=CPU, sharded=False)
        return [
            n.removeprefix("model.encoder.layers.") for n, m in objective.named_modules() if "Float8" in str(type(m))
        ]

    block = ["attention.qkv", "attention.out", "mlp.w1", "mlp.w2", "mlp.w3"]
    assert names() == [f"{i}.{n}" for i in (0, 1) for n in block][1:]
    assert names(skip_first_last_linear=False) == [f"{i}.{n}" for i in (0, 1) for n in block]
    assert names(filter_fqns=["decoder", "mlp", "layers.0"]) == ["1.attention.qkv", "1.attention.out"]
    with pytest.raises(PipelineError, match=r"torchao\.filter_fqns: 'attn' is in no linear layer's name; .*attention"):
        names(filter_fqns=["decoder", "attn"])
    with pytest.raises(PipelineError, match=r"no linear layer is left.* multiples of 16"):
        names(filter_fqns=["decoder", "layers"])


def test_small_layers_are_filtered_by_torchaos_own_table():
    with pytest.raises(PipelineError, match=r"set torchao\.auto_filter_small_kn to false"):
        convert(tiny.objective(**MODEL), TorchaoConfig(auto_filter_small_kn=True), device=CPU, sharded=False)


def test_layers_whose_sizes_do_not_divide_are_kept():
    objective = tiny.objective(**{**MODEL, "hidden_size": 48})  # 32 divides the products of SwiGLU's output, not 48
    with pytest.raises(PipelineError, match="multiples of 32"):
        convert(objective, TorchaoConfig(recipe="mxfp8_emulated"), device=CPU, sharded=False)
