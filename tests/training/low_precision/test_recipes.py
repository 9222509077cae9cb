"""A recipe that this device or installation cannot run is refused with everything that is missing."""

import importlib
import re
import sys
import types
from pathlib import Path

import pytest

from neobert.config.quartet2 import Quartet2Config
from neobert.config.torchao import TorchaoConfig
from neobert.config.transformer_engine import TransformerEngineConfig
from neobert.config.validate import section_class
from neobert.errors import PipelineError
from neobert.training.low_precision import recipes
from neobert.training.low_precision.recipes import RECIPES, check_tokens, enabled, require

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def gpu(monkeypatch):
    def pretend(*capability):
        monkeypatch.setattr(recipes, "capability", lambda: capability or None)

    return pretend


def why(config):
    with pytest.raises(PipelineError) as error:
        require(config)
    return str(error.value)


def test_every_recipe_of_the_sections_is_in_the_table():
    for section in ("torchao", "transformer_engine", "quartet2"):
        literal = section_class(section).__annotations__["recipe"]
        named = set(re.findall(r"'([a-z0-9_]+)'|\"([a-z0-9_]+)\"", literal))
        assert {a or b for a, b in named} == {name for key, name in RECIPES if key == section}


def test_the_documents_table_says_what_the_code_checks():
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]]
        for line in (ROOT / "docs" / "training.md").read_text().splitlines()
        if re.match(r"\| `(torchao|transformer_engine|quartet2)` ", line)
    ]
    shown = {(row[0], row[1]): (row[2], row[3]) for row in rows}
    assert shown.keys() == RECIPES.keys()
    for key, (device, multiple) in shown.items():
        recipe = RECIPES[key]
        assert device == ("refused" if recipe.gone else recipe.device()), key
        assert multiple == str(recipe.multiple), key


def test_nothing_is_asked_of_a_run_without_a_recipe():
    assert enabled(TorchaoConfig(), TransformerEngineConfig(), Quartet2Config()) is None
    require(None)
    check_tokens(None, 1)


def test_a_missing_gpu_and_a_missing_package_are_both_named(gpu, monkeypatch):
    gpu()
    monkeypatch.setattr(recipes.importlib.util, "find_spec", lambda name: None)
    message = why(enabled(TorchaoConfig(), TransformerEngineConfig(), Quartet2Config(enable=True)))
    assert message.startswith("quartet2.recipe: quartet_ii cannot run here: ")
    assert "a GPU of sm_120 and there is none here" in message
    assert "quartet2 is not installed (pip install" in message
    assert "qutlass is not installed (pip install" in message


@pytest.mark.parametrize(
    ("config", "capability", "message"),
    [
        (TorchaoConfig(recipe="float8_rowwise"), (8, 0), "sm_89 or newer and this GPU is sm_80"),
        (TorchaoConfig(recipe="mxfp8_cublas"), (9, 0), "sm_100 or newer and this GPU is sm_90"),
        (TorchaoConfig(recipe="nvfp4_qat"), (9, 0), "sm_100 or newer and this GPU is sm_90"),
        (TransformerEngineConfig(recipe="mxfp8"), (12, 0), "sm_100 to below sm_120 and this GPU is sm_120"),
        (Quartet2Config(), (10, 0), "sm_120 and this GPU is sm_100"),
    ],
)
def test_a_gpu_that_does_not_fit_is_named(gpu, config, capability, message):
    gpu(*capability)
    assert message in why(config)


def test_a_recipe_that_is_gone_says_so(gpu):
    gpu(10, 0)
    assert why(TorchaoConfig(recipe="mxfp4_cutlass")) == (
        "torchao.recipe: mxfp4_cutlass cannot run here: torchao removed its CUTLASS kernel for MXFP4; take "
        "mxfp4_emulated or mxfp4_qat"
    )


def test_an_old_and_a_broken_package_are_told_apart(gpu, monkeypatch):
    gpu(9, 0)
    old = types.ModuleType("torchao.float8")
    monkeypatch.setitem(sys.modules, "torchao.float8", old)
    assert re.search(r"torchao \S+ has no torchao\.float8\.convert_to_float8_training", why(TorchaoConfig()))

    def broken(name):
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(recipes.importlib, "import_module", broken)
    assert "torchao is installed and cannot be loaded (libcudart.so.13" in why(TorchaoConfig())


def test_recipes_that_fit_pass(gpu):
    pytest.importorskip("torchao")
    require(TorchaoConfig(recipe="mxfp8_emulated"))
    require(TorchaoConfig(recipe="mxfp4_qat"))
    gpu(9, 0)
    for name in ("float8_tensorwise", "float8_rowwise", "float8_rowwise_with_gw_hp"):
        require(TorchaoConfig(recipe=name))
    gpu(10, 0)
    for name in ("mxfp8_cublas", "mxfp8_cublas_rceil", "nvfp4_qat"):
        require(TorchaoConfig(recipe=name))


def test_micro_batches_must_divide_into_blocks():
    check_tokens(TorchaoConfig(), 16 * 100)
    with pytest.raises(PipelineError, match=r"a multiple of 16 tokens, and .* is 100"):
        check_tokens(TorchaoConfig(), 100)


@pytest.mark.parametrize("stage", ["pretrain", "longer_context"])
def test_both_phases_are_refused_before_they_open_anything(stage, gpu, monkeypatch, tmp_path):
    gpu()
    params = "torchao: {enable: true, recipe: float8_tensorwise, require_compile: false}\n"
    (tmp_path / "params.yaml").write_text(params)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=r"torchao\.recipe: float8_tensorwise cannot run here: it needs a GPU"):
        importlib.import_module(f"stages.{stage}").main()
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
