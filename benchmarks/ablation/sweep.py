"""A sweep file, and the runs that it asks for, all checked before the first one starts.

    target: pretrain                      # stage, as `dvc exp run` takes it
    metrics:                              # columns of the table; the first is compared with the baseline
      - {file: reports/pretrain/metrics.json, key: eval_loss, label: held-out loss}
    seeds: [0, 1, 2]
    baseline: adamw
    common: [trainer.max_steps=80]        # settings of every run, key=value as `dvc exp run -S` takes them
    variants:
      adamw: []
      muon: [optimizer.name=muon, optimizer.lr=0.02]

Settings are applied to a copy of params.yaml by DVC's own code and validated by `neobert.config.validate`. A key that
params.yaml leaves at its default may be set too; one that no section knows is refused.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from neobert.config.load import PARAMS, read_params
from neobert.config.schema import parse
from neobert.config.validate import validate
from neobert.errors import PipelineError

NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class Metric:
    """A number that a stage writes: a file under `metrics` in dvc.yaml and a dotted key in it."""

    file: Annotated[str, "Metrics file."]
    key: Annotated[str, "Dotted key in it."]
    label: Annotated[str, "Its heading in tables."]


@dataclass(frozen=True)
class Sweep:
    """A sweep file's content; `name` is the file's."""

    target: Annotated[str, "Stage that a run ends with."]
    metrics: Annotated[list[Metric], "What is compared."]
    seeds: Annotated[list[int], "Values of `seed`; every variant runs with each."]
    baseline: Annotated[str, "Variant that the others are compared with."]
    variants: Annotated[dict[str, list[str]], "Settings of each variant."]
    common: Annotated[list[str], "Settings of all runs."] = field(default_factory=list)
    name: Annotated[str, "Begins the names of the experiments."] = ""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Rules that need no params.yaml."""
        if self.baseline not in self.variants:
            yield "baseline", f"is not a variant; there are {', '.join(self.variants)}"
        if not self.metrics or len({m.label for m in self.metrics}) < len(self.metrics):
            yield "metrics", "must be at least one, each with a label of its own"
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            yield "seeds", "must be at least one, each once"
        if unfit := [name for name in (self.name, *self.variants) if not NAME.fullmatch(name)]:
            yield "variants", f"{', '.join(unfit)}: names are lower-case letters, digits, - and _"
        for name, settings in self.variants.items():
            keys = Counter(setting.partition("=")[0] for setting in [*self.common, *settings])
            if twice := [key for key, count in keys.items() if count > 1]:
                yield "variants", f"{name} sets {', '.join(twice)} twice (its own settings and `common` together)"
            if "seed" in keys:
                yield "variants", f"{name} sets seed, which `seeds` does"


@dataclass(frozen=True)
class Run:
    """One experiment: its name, its settings and the params.yaml that they give."""

    name: str
    variant: str
    seed: int
    settings: list[str]
    params: dict[str, Any]


def read_sweep(path: Path) -> Sweep:
    """The sweep file.

    Raises:
        PipelineError: it is missing, is not YAML, or breaks a rule of `Sweep`; all problems at once.
    """
    problems: list[str] = []
    sweep = parse(Sweep, {"name": path.stem, **read_params(path)}, path.stem, problems)
    if sweep is None:
        raise PipelineError(f"{path} has {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return sweep


def plan(sweep: Sweep, project: Path) -> list[Run]:
    """Every run of the sweep, variant by variant.

    Raises:
        PipelineError: a metrics file or target that dvc.yaml does not name, a setting that DVC cannot apply or the
            pipeline would refuse, two variants with the same params; all problems at once.
    """
    problems = list(_undeclared(sweep, project))
    runs, seen = [], dict[str, str]()
    for variant, own in sweep.variants.items():
        settings = [*sweep.common, *own]
        try:
            params = applied(settings, project / PARAMS)
        except PipelineError as error:
            problems.append(f"variants.{variant}: {error}")
            continue
        same = seen.setdefault(json.dumps(params, sort_keys=True, default=str), variant)
        if same != variant:
            problems.append(f"variants.{variant}: has the same params as {same}; remove one")
        for seed in sweep.seeds:
            every = [f"seed={seed}", *settings]
            runs.append(Run(f"{sweep.name}-{variant}-{seed}", variant, seed, every, {**params, "seed": seed}))
    if problems:
        raise PipelineError(f"sweep {sweep.name} has {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return runs


def applied(settings: list[str], params_yaml: Path) -> dict[str, Any]:
    """params.yaml with these settings, as `dvc exp run -S` would write it; validated.

    Raises:
        PipelineError: as `plan`, for one variant.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PARAMS
        copy.write_text(params_yaml.read_text())
        try:
            apply_overrides(copy, set_params(settings))
        except InvalidArgumentError as error:
            raise PipelineError(f"{', '.join(settings)}: {error.__cause__ or error}") from error
        try:
            validate(copy)
        except PipelineError as error:
            raise PipelineError(str(error).replace(str(copy), PARAMS)) from error
        return read_params(copy)


def set_params(settings: list[str]) -> list[str]:
    """Settings for `-S`: set or add, since params.yaml need not spell out a key; `validate` knows which exist."""
    return [f"++{setting.lstrip('+')}" for setting in settings]


def _undeclared(sweep: Sweep, project: Path) -> Iterable[str]:
    """Names that no dvc.yaml has, which DVC would notice after the first run, or not at all."""
    file, _, stage = sweep.target.rpartition(":")
    pipeline = YAML(typ="safe", pure=True).load((project / (file or "dvc.yaml")).read_text())["stages"]
    if stage not in pipeline:
        yield f"target: {sweep.target} is not a stage; there are {', '.join(pipeline)}"
    metrics = {path for s in pipeline.values() for entry in s.get("metrics", []) for path in _names(entry)}
    for metric in sweep.metrics:
        if metric.file not in metrics:
            yield f"metrics: {metric.file} is no stage's metrics file; there are {', '.join(sorted(metrics))}"


def _names(entry: str | dict[str, Any]) -> Iterable[str]:
    return [entry] if isinstance(entry, str) else entry
