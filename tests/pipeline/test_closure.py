"""dvc.yaml lists exactly the code that a stage runs: an edit re-runs what it can change, and nothing else."""

import pytest
from ruamel.yaml import YAML

from tests.pipeline.closure import ROOT, code_deps

STAGES = {
    name: stage
    for path in ("dvc.yaml", "optional/dvc.yaml")
    for name, stage in YAML(typ="safe", pure=True).load((ROOT / path).read_text())["stages"].items()
}


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_equal_the_import_closure(stage):
    listed = sorted(d for d in STAGES[stage]["deps"] if d.startswith(("neobert", "stages")))
    assert listed == code_deps(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_command_runs_the_stage_module(stage):
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}"
    assert not any("persist" in str(out) for out in STAGES[stage]["outs"])


@pytest.mark.parametrize("package", ["model", "training", "packing"])
def test_core_imports_without_the_pipeline_packages(package):
    import subprocess
    import sys

    modules = [f"neobert.{package}.{p.stem}" for p in sorted((ROOT / "neobert" / package).glob("[a-z]*.py"))]
    code = (
        "import sys, importlib\n"
        "for name in ('dvc', 'pandera', 'mteb', 'sentence_transformers'): sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
