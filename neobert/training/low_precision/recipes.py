"""Which low-precision recipe needs which device and package, as data; and the check that they are here.

Checked when a stage starts, before it opens anything. A recipe that cannot run is refused with everything that is
missing: nothing falls back to another one. docs/training.md shows this table.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from neobert.config.low_precision import LinearLayersConfig
from neobert.config.quartet2 import Quartet2Config
from neobert.config.torchao import TorchaoConfig
from neobert.config.transformer_engine import TransformerEngineConfig
from neobert.errors import PipelineError

SECTIONS = {TorchaoConfig: "torchao", TransformerEngineConfig: "transformer_engine", Quartet2Config: "quartet2"}
INSTALL = {
    "torchao": "pip install 'torchao>=0.18'",
    "transformer_engine": "pip install --no-build-isolation -e '.[te]' (compiles, needs CUDA)",
    "quartet2": "pip install --no-build-isolation -e '.[quant_quartet]' (compiles, needs CUDA)",
    "qutlass": "pip install --no-build-isolation 'qutlass @ git+https://github.com/IST-DASLab/qutlass.git', not PyPI's",
}
Capability = tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """What a recipe needs.

    Attributes:
        symbols: `module:name` of what is called; the module's first part is the package.
        multiple: divides both sizes of a layer, and the tokens of a micro-batch (the inner size of the weights'
            gradient).
        lowest: compute capability it starts at; None runs anywhere.
        below: compute capability it ends before.
        gone: why no version of the package offers it any more.
    """

    symbols: tuple[str, ...]
    multiple: int
    lowest: Capability | None = None
    below: Capability | None = None
    gone: str = ""

    def fits(self, here: Capability | None) -> bool:
        """Whether a GPU of this compute capability (None: no GPU) runs it."""
        if self.lowest is None:
            return True
        return here is not None and self.lowest <= here and (self.below is None or here < self.below)

    def device(self) -> str:
        """The device in words."""
        if self.lowest is None:
            return "any"
        if self.below is None:
            return f"{sm(self.lowest)} or newer"
        alone = self.below == (self.lowest[0], self.lowest[1] + 1)
        return sm(self.lowest) if alone else f"{sm(self.lowest)} to below {sm(self.below)}"


FLOAT8 = Recipe(("torchao.float8:convert_to_float8_training",), 16, lowest=(8, 9))
MX = "torchao.prototype.moe_training.mxfp8_linear:mx_mm"
TE = "transformer_engine.pytorch:autocast"
TE_RECIPES = "transformer_engine.common.recipe"

RECIPES: dict[tuple[str, str], Recipe] = {
    ("torchao", "float8_tensorwise"): FLOAT8,
    ("torchao", "float8_rowwise"): FLOAT8,
    ("torchao", "float8_rowwise_with_gw_hp"): FLOAT8,
    ("torchao", "mxfp8_emulated"): Recipe((MX,), 32),
    ("torchao", "mxfp8_cublas"): Recipe((MX,), 32, lowest=(10, 0)),
    ("torchao", "mxfp8_cublas_rceil"): Recipe((MX,), 32, lowest=(10, 0)),
    ("torchao", "mxfp4_cutlass"): Recipe(
        (), 32, lowest=(10, 0), gone="torchao removed its CUTLASS kernel for MXFP4; take mxfp4_emulated or mxfp4_qat"
    ),
    ("torchao", "mxfp4_emulated"): Recipe((MX,), 32),
    ("torchao", "nvfp4_qat"): Recipe(("torchao.prototype.qat.nvfp4:NVFP4FakeQuantizeConfig",), 16, lowest=(10, 0)),
    ("torchao", "mxfp4_qat"): Recipe(("torchao.prototype.qat.mx:MXFakeQuantizeConfig",), 32),
    ("transformer_engine", "fp8_delayed"): Recipe((TE, f"{TE_RECIPES}:DelayedScaling"), 16, lowest=(8, 9)),
    ("transformer_engine", "fp8_current"): Recipe((TE, f"{TE_RECIPES}:Float8CurrentScaling"), 16, lowest=(8, 9)),
    ("transformer_engine", "mxfp8"): Recipe((TE, f"{TE_RECIPES}:MXFP8BlockScaling"), 32, lowest=(10, 0), below=(12, 0)),
    ("transformer_engine", "nvfp4"): Recipe((TE, f"{TE_RECIPES}:NVFP4BlockScaling"), 16, lowest=(10, 0)),
    ("quartet2", "quartet_ii"): Recipe(
        ("quartet2.linear:Quartet_II_linear", "qutlass:matmul_nvf4_bf16_tn"), 128, lowest=(12, 0), below=(12, 1)
    ),
}


def sm(version: Capability) -> str:
    """(9, 0) -> "sm_90"."""
    return f"sm_{version[0]}{version[1]}"


def capability() -> Capability | None:
    """Compute capability of this process's GPU; None where there is none."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def enabled(*sections: LinearLayersConfig) -> LinearLayersConfig | None:
    """The section that is turned on, or None (that there is at most one was validated)."""
    return next((section for section in sections if section.enable), None)


def key_of(config: LinearLayersConfig) -> tuple[str, str]:
    """(section, recipe), the key of `RECIPES`."""
    return SECTIONS[type(config)], config.recipe  # type: ignore[attr-defined, index]


def recipe_of(config: LinearLayersConfig) -> Recipe:
    """What `config`'s recipe needs."""
    return RECIPES[key_of(config)]


def require(config: LinearLayersConfig | None) -> None:
    """Refuse a recipe that this device or installation cannot run; call before any work.

    Raises:
        PipelineError: the key, and everything that is missing.
    """
    if config is None:
        return
    section, name = key_of(config)
    missing = list(_missing(recipe_of(config)))
    if missing:
        raise PipelineError(f"{section}.recipe: {name} cannot run here: " + "; ".join(missing))


def check_tokens(config: LinearLayersConfig | None, tokens: int) -> None:
    """Refuse micro-batches whose tokens the recipe's products cannot divide into blocks.

    Raises:
        PipelineError: naming the sizes.
    """
    if config is not None and tokens % recipe_of(config).multiple:
        section, name = key_of(config)
        raise PipelineError(
            f"{section}.recipe: {name} needs micro-batches of a multiple of {recipe_of(config).multiple} tokens, and "
            f"per_device_train_batch_size x max_length is {tokens}; change one of them"
        )


def _missing(recipe: Recipe) -> Iterator[str]:
    if recipe.gone:
        yield recipe.gone
        return
    here = capability()
    if not recipe.fits(here):
        found = f"this GPU is {sm(here)}" if here else "there is none here"
        yield f"it needs a GPU of {recipe.device()} and {found}"
    for symbol in recipe.symbols:
        yield from _unavailable(symbol)


def _unavailable(symbol: str) -> Iterator[str]:
    """Why `module:name` cannot be imported, if so."""
    module, _, name = symbol.partition(":")
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        yield f"{package} is not installed ({INSTALL[package]})"
        return
    try:
        found = hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        found = False
    except (ImportError, OSError, RuntimeError) as error:  # a library that was built for another CUDA or torch
        yield f"{package} is installed and cannot be loaded ({error})"
        return
    if not found:
        yield f"{package} {_version(package)} has no {module}.{name}; install another version ({INSTALL[package]})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
