"""Run directories: named by what decides the result, locked, and never resumed into nothing."""

import pytest

from neobert.errors import PipelineError
from neobert.io import write_manifest
from neobert.training.scratch import describe, open_scratch
from tests.training import tiny

DVC = """
stages:
  tiny:
    cmd: python -m stages.tiny
    params: [trainer, longer_context.packing]
    deps: [core, stage.py, data/packed, data/tokenizer]
    outs: [model]
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(DVC)
    (tmp_path / "params.yaml").write_text(
        "trainer: {max_steps: 1}\nlonger_context: {packing: {max_length: 8}, other: 1}\nruntime: {save_steps: 1}\n"
    )
    for name in ("core/a.py", "stage.py", "data/packed/train/shard", "data/tokenizer/tokenizer.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    write_manifest(tmp_path / "data/packed/train")
    return tmp_path


def changed(before, after):
    return {f"{part}.{key}" for part in before for key in before[part] if before[part][key] != after[part].get(key)}


def test_params_inputs_and_code_decide_the_run_and_runtime_keys_do_not(project):
    first = describe("tiny")
    (project / "params.yaml").write_text(
        "trainer: {max_steps: 1}\nlonger_context: {packing: {max_length: 8}, other: 2}\nruntime: {save_steps: 9}\n"
    )
    (project / "core" / "__pycache__").mkdir()
    (project / "core" / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert describe("tiny") == first
    (project / "core" / "a.py").write_text("other")
    assert changed(first, describe("tiny")) == {"code.core"}
    (project / "params.yaml").write_text("trainer: {max_steps: 2}\nlonger_context: {packing: {max_length: 8}}\n")
    assert changed(first, describe("tiny")) == {"code.core", "params.trainer"}
    (project / "data/packed/train/shard").write_text("other rows")
    write_manifest(project / "data/packed/train")
    (project / "data/tokenizer/tokenizer.json").write_text("other")
    assert changed(first, describe("tiny")) == {
        "code.core", "params.trainer", "inputs.data/packed", "inputs.data/tokenizer",
    }  # fmt: skip


def test_a_templated_dependency_is_what_params_name(project):
    (project / "dvc.yaml").write_text(DVC.replace("data/tokenizer]", "'${longer_context.start}']"))
    (project / "params.yaml").write_text("longer_context: {start: models/theirs, packing: {}}\ntrainer: {}\n")
    theirs = project / "models" / "theirs"
    (theirs / ".cache").mkdir(parents=True)
    for name in ("model.safetensors", "modeling_theirs.py"):
        (theirs / name).write_text(name)
    first = describe("tiny")
    assert set(first["inputs"]) == {"data/packed", "models/theirs"}  # an input, whatever code lies in it
    (theirs / ".cache" / "downloaded-at").write_text("today")
    assert describe("tiny") == first
    (theirs / "model.safetensors").write_text("other weights")
    assert changed(first, describe("tiny")) == {"inputs.models/theirs"}


def test_an_interrupted_run_is_found_again_and_a_finished_one_is_done_anew(project):
    parts = {"params": {"trainer": {"max_steps": 12}}, "inputs": {}, "code": {}}
    with pytest.raises(RuntimeError), open_scratch("tiny", parts) as scratch:
        tiny.run(scratch, {"max_steps": 8})
        raise RuntimeError("killed")
    with open_scratch("tiny", parts) as again:
        assert again == scratch
        assert (again / "checkpoints" / "8").is_dir()
    assert (scratch / "COMPLETE").exists()
    with open_scratch("tiny", parts) as anew:
        assert not (anew / "checkpoints").exists()
        assert (anew.with_name(anew.name + ".complete") / "checkpoints" / "8").is_dir()
    with open_scratch("tiny", {**parts, "code": {"x": 1}}) as other:
        assert other != scratch


def test_a_second_run_in_the_same_place_is_refused_by_name(project):
    second = pytest.raises(PipelineError, match=r"another run is at work here \(host .*, pid")
    with open_scratch("tiny", {}), second, open_scratch("tiny", {}):
        pass
