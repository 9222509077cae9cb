"""benchmarks.from_scratch over toy stages: what each start gets, what is shared, what runs again; and its tables."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import from_scratch
from benchmarks.markers import between
from neobert.config.load import read_params
from neobert.errors import PipelineError
from neobert.io import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
# A stage writes what it was given: `made` says which seed and start its model came from.
TOY = """
import json, os, signal, time
from pathlib import Path
from ruamel.yaml import YAML

def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)

stage = Path(__file__).stem
params = YAML(typ="safe", pure=True).load(Path("params.yaml"))
with open(os.environ["TOY"] + "/calls", "a") as calls:
    calls.write(f"{stage} {params['seed']}\\n")
if Path(os.environ["TOY"], f"break-{stage}").exists():
    raise SystemExit("error: broken")
if Path(os.environ["TOY"], f"hold-{stage}").exists():
    def save(*_):
        time.sleep(0.5)
        write("saved", "")
        raise SystemExit(1)
    signal.signal(signal.SIGTERM, save)
    write(os.environ["TOY"] + "/held", "")
    while True:
        time.sleep(0.05)
if stage in ("tokenize", "pack", "pack_long", "contrastive_preprocess"):
    assert Path("data/corpus/part").read_text() == "text"
    write(f"data/{stage}", str(params["packing"]["max_length"]))
else:
    assert Path("data/pack").read_text() == "512"
    inputs = {"longer_context": "models/pretrained", "contrastive_finetune": params["contrastive"]["pretrained_from"]}
    made = {"stage": stage, "seed": params["seed"], "random": params["contrastive"]["allow_random_weights"]}
    if stage in inputs:
        made["from"] = json.loads(Path(inputs[stage], "made").read_text())
    name = {"pretrain": "pretrained", "longer_context": "long_context", "contrastive_finetune": "contrastive"}[stage]
    write(f"models/{name}/made", json.dumps(made))
    report = "contrastive" if stage == "contrastive_finetune" else stage
    write(f"reports/{report}/metrics.json", json.dumps({"eval_loss": 2.0 + params["seed"], "tokens": 100}))
    for ending in ("0123456789abcdef", "0123456789abcdef.complete"):
        rows = "".join(json.dumps({"tokens_per_second": rate}) + "\\n" for rate in (1, 50, 60))
        write(f"runs/{stage}-{ending}/throughput.jsonl", rows)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout with toy stages; scoring a model is reading what made it."""
    root = tmp_path / "project"
    for name in ("neobert", "stages", *(f"data/{name}" for name in from_scratch.INPUTS)):
        (root / name).mkdir(parents=True)
    (root / "data/corpus/part").write_text("text")
    (root / "stages/__init__.py").touch()
    for stage in {*from_scratch.PREPARE, *(stage for _, stage in from_scratch.STAGES)}:
        (root / "stages" / f"{stage}.py").write_text(TOY)
    shutil.copytree(ROOT / "profiles", root / "profiles")
    shutil.copy(ROOT / "params.yaml", root)
    (root / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(root)
    monkeypatch.setenv("TOY", str(tmp_path))
    made = lambda places: {start: read_json(place / "models/contrastive/made") for start, place in places.items()}  # noqa: E731
    monkeypatch.setattr(from_scratch, "scored", lambda places, _: (made(places), "toy"))
    return root


def calls(project):
    return project.parent.joinpath("calls").read_text().splitlines()


def test_seeds_at_once_share_data_and_differ_in_seed_and_start(project, tmp_path):
    before, work = (project / "params.yaml").read_text(), tmp_path / "work"
    from_scratch.prepare(work, ["embedded-gpu"])
    assert calls(project) == [f"{stage} 42" for stage in from_scratch.PREPARE]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda seed: from_scratch.run_seed(work, seed), (0, 1)))
    for seed, result in enumerate(results):
        encoder = {"stage": "longer_context", "seed": seed, "random": False}
        encoder["from"] = {"stage": "pretrain", "seed": seed, "random": False}
        common = {"stage": "contrastive_finetune", "seed": seed, "from": encoder}
        assert result["scores"] == {"pretrained": {**common, "random": False}, "random": {**common, "random": True}}
        assert result["stages"]["pretrain"]["tokens_per_second"] == 50
        assert result["stages"]["contrastive_finetune from random weights"]["eval_loss"] == 2 + seed
        assert result["seconds"] == pytest.approx(sum(stage["seconds"] for stage in result["stages"].values()))
    assert len(calls(project)) == 4 + 2 * 4
    assert (project / "params.yaml").read_text() == before
    assert sorted(p.name for p in (project / "data").iterdir()) == sorted(from_scratch.INPUTS)


def test_the_same_command_goes_on_after_a_failed_stage(project, tmp_path):
    work = tmp_path / "work"
    from_scratch.prepare(work, ["embedded-gpu"])
    (tmp_path / "break-longer_context").touch()
    with pytest.raises(PipelineError, match="longer_context ended with status 1"):
        from_scratch.run_seed(work, 3)
    (tmp_path / "break-longer_context").unlink()
    from_scratch.prepare(work, ["embedded-gpu"])
    from_scratch.run_seed(work, 3)
    tried = ["pretrain", "longer_context", "longer_context", "contrastive_finetune", "contrastive_finetune"]
    assert calls(project)[4:] == [f"{stage} 3" for stage in tried]


def test_a_stopped_seed_lets_its_training_save_and_goes_on(project, tmp_path):
    work = tmp_path / "work"
    from_scratch.prepare(work, ["embedded-gpu"])
    (tmp_path / "hold-pretrain").touch()
    command = [sys.executable, "-m", "benchmarks.from_scratch", "seed", str(work), "0"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "held").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 143
    assert (work / "seed-0/pretrained/saved").exists()
    (tmp_path / "hold-pretrain").unlink()
    result = from_scratch.run_seed(work, 0)
    assert result["stages"]["pretrain"]["seconds"] > 0.5  # of both processes
    assert [call.split()[0] for call in calls(project)[4:7]] == ["pretrain", "pretrain", "longer_context"]


def test_profiles_apply_in_order_and_another_one_needs_another_directory(project, tmp_path):
    work, more = tmp_path / "work", tmp_path / "more.yaml"
    more.write_text("trainer: {max_steps: 7}\n")
    with pytest.raises(PipelineError, match="is not prepared"):
        from_scratch.run_seed(work, 0)
    from_scratch.prepare(work, ["embedded-gpu", str(more)])
    params = read_params(work / "params.yaml")
    assert (params["trainer"]["max_steps"], params["model"]["num_hidden_layers"]) == (7, 12)
    assert params["runtime"]["save_steps"] is None
    with pytest.raises(PipelineError, match="made with other settings"):
        from_scratch.prepare(work, ["embedded-gpu"])
    assert read_params(work / "params.yaml") == params


def result(seed, random, pretrained):
    tasks = lambda value: {"search": value}  # noqa: E731
    stage = {"seconds": 10.0, "tokens": 5000, "tokens_per_second": 2000.0 + seed, "eval_loss": 1.5 + seed}
    return {
        "seed": seed,
        "device": "toy",
        "seconds": 50.0,
        "stages": {**dict.fromkeys(from_scratch.STAGES.values(), stage), "scoring": {"seconds": 4.0}},
        "scores": {"bm25": tasks(0.5), "random": tasks(random), "pretrained": tasks(pretrained)},
    }


def test_tables_are_paired_by_seed_and_refuse_what_does_not_compare(tmp_path, capsys):
    document = tmp_path / "notes.md"
    document.write_text("<!-- from_scratch -->\n<!-- /from_scratch -->\n")
    files = [tmp_path / f"seed-{seed}.json" for seed in (1, 0)]
    for file, values in zip(files, ((1, 0.3, 0.7), (0, 0.2, 0.4)), strict=True):
        write_json(file, result(*values))
    from_scratch.table(files, document)
    deviation = [statistics.stdev(values) for values in ((0.2, 0.3), (0.4, 0.7), (0.2, 0.4))]
    cells = "| search | 0.5000 | 0.2500 ± {:.4f} | 0.5500 ± {:.4f} | +0.3000 ± {:.4f} |".format(*deviation)
    text = between(document, "from_scratch")
    assert cells in text
    assert "| pretrain | 10 | 5,000 ± 0 | 2,000 ± 1 | 2.0000 ± 0.7071 |" in text
    assert "| scoring | 4 |  |  |  |" in text
    assert "100 device seconds in all" in text
    printed = capsys.readouterr().out.splitlines()
    assert text in "\n".join(printed)
    assert [row["seed"] for row in json.loads(printed[-1])["results"]] == [0, 1]
    with pytest.raises(PipelineError, match="twice"):
        from_scratch.table([files[0], files[0]], None)
    other = result(2, 0.2, 0.4)
    other["scores"]["bm25"]["search"] = 0.6
    write_json(files[0], other)
    with pytest.raises(PipelineError, match="BM25"):
        from_scratch.table(files, document)
    assert between(document, "from_scratch") == text


def test_needs_no_dvc(tmp_path):
    code = "import sys; sys.modules['dvc'] = None; import benchmarks.from_scratch, benchmarks.retrieval"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
