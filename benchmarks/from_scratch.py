"""What the pipeline reaches from random weights, over seeds: does it beat BM25, and does pretraining pay?

    python -m benchmarks.from_scratch prepare DIR [--profile embedded-gpu ...]
    CUDA_VISIBLE_DEVICES=0 python -m benchmarks.from_scratch seed DIR 0      # a process a seed; several at once may run
    python -m benchmarks.from_scratch table DIR/seed-*.json [--write benchmarks/README.md]

`prepare` applies profiles to a copy of params.yaml and makes rows and pairs from data/corpus, data/embedded and
data/tokenizer. `seed` runs pretrain, longer_context and contrastive_finetune, then contrastive_finetune once more from
random weights of the same shape (`contrastive.allow_random_weights`), and scores both models and BM25 on the local
retrieval tasks. It writes DIR/seed-N.json and prints it as its last line. `table` prints tables (mean and standard
deviation over seeds), which `--write` also puts into a document, then one JSON object as its last line.

Each stage is the project's own `python -m stages.X`, in a directory under DIR that has params.yaml, models, reports and
runs of its own and links to the code and the data. So DVC is not needed, the checkout's params.yaml, data and models
stay as they are, seeds do not meet, and the same command goes on where an earlier one was stopped. Cost: the stages'
own, and a few seconds each for starting a process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.ablation.table import spread
from benchmarks.markers import between, write_between
from neobert.config.evaluation import EvaluationConfig
from neobert.config.load import load
from neobert.config.profile import apply_profile, editor, merge
from neobert.errors import PipelineError
from neobert.io import read_json, write_json

MARKER = "from_scratch"
CODE = ("neobert", "stages", "dvc.yaml")
INPUTS = ("raw", "corpus", "embedded", "tokenizer")
PREPARE = ("tokenize", "pack", "pack_long", "contrastive_preprocess")
START = "models/long_context"
COLUMNS = {"bm25": "BM25", "random": "from random weights", "pretrained": "from the pretrained encoder"}
STAGES = {
    ("pretrained", "pretrain"): "pretrain",
    ("pretrained", "longer_context"): "longer_context",
    ("pretrained", "contrastive_finetune"): "contrastive_finetune",
    ("random", "contrastive_finetune"): "contrastive_finetune from random weights",
}
SCORING = "scoring"
REPORTS = {"pretrain": "pretrain", "longer_context": "longer_context", "contrastive_finetune": "contrastive"}


def link(path: Path, target: Path) -> None:
    """A relative link `path` to `target`, unless it is there."""
    if not path.is_symlink():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()))


def workspace(directory: Path, params: Path, settings: dict[str, Any]) -> Path:
    """A directory that stages run in: the project's code, and the params of `params` with `settings`.

    Raises:
        PipelineError: it was made with other params.
    """
    for name in CODE:
        link(directory / name, Path(name))
    yaml = editor()
    values = yaml.load(params.read_text())
    merge(values, settings)
    fresh, path = directory / "params.new.yaml", directory / "params.yaml"
    with open(fresh, "w") as handle:
        yaml.dump(values, handle)
    if path.exists() and path.read_text() != fresh.read_text():
        raise PipelineError(f"{path}: was made with other settings; delete {directory}, or take another directory")
    fresh.replace(path)
    return directory


def spent(directory: Path, stage: str) -> dict[str, Any]:
    """What a workspace has noted of a stage: wall seconds of all its processes, and whether it has finished."""
    note = directory / "seconds" / f"{stage}.json"
    return read_json(note) if note.is_file() else {"seconds": 0.0, "finished": False}


def run_stage(directory: Path, stage: str) -> None:
    """Run a stage in a workspace, unless it has finished there, and note its wall seconds.

    Raises:
        PipelineError: it failed; its own message is above.
    """
    before = spent(directory, stage)
    if before["finished"]:
        return
    print(f"{directory}: {stage}", file=sys.stderr, flush=True)
    environment = {key: value for key, value in os.environ.items() if key != "NEOBERT_RUNS_DIR"}
    start = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=directory, env=environment)
    try:
        child.wait()
    except BaseException:  # told to stop: so is the training, which saves where it is
        child.terminate()
        child.wait()
        raise
    finally:
        seconds = before["seconds"] + time.monotonic() - start
        write_json(directory / "seconds" / f"{stage}.json", {"seconds": seconds, "finished": child.returncode == 0})
    if child.returncode:
        raise PipelineError(f"{directory}: {stage} ended with status {child.returncode}; the same command goes on")


def prepare(directory: Path, profiles: list[str]) -> None:
    """Params, rows and pairs that all seeds share.

    Raises:
        PipelineError: an input is missing, a profile is unfit, or a stage failed.
    """
    for name in INPUTS:
        if not Path("data", name).is_dir():
            raise PipelineError(f"data/{name}: is not there; run `dvc repro tokenizer`")
        link(directory / "data" / name, Path("data", name))
    with tempfile.TemporaryDirectory() as folder:
        params = Path(shutil.copy("params.yaml", folder))
        for profile in profiles:
            path = Path(profile)
            apply_profile(path.stem, path.parent if path.suffix else "profiles", params)
        # Minutes are timed, so none go into checkpoints but the one of a training that is told to stop.
        workspace(directory, params, {"runtime": {"save_steps": None, "logging_steps": 20}})
    for stage in PREPARE:
        run_stage(directory, stage)


def run_seed(directory: Path, seed: int) -> dict[str, Any]:
    """Train and score with `seed`.

    Raises:
        PipelineError: `prepare` was not run, a stage failed, or a task did.
    """
    params = directory / "params.yaml"
    if not spent(directory, PREPARE[-1])["finished"]:
        raise PipelineError(
            f"{directory}: is not prepared; run `python -m benchmarks.from_scratch prepare {directory}`"
        )
    places = {}
    for start in ("pretrained", "random"):
        settings = {"seed": seed, "contrastive": {"allow_random_weights": start == "random", "pretrained_from": START}}
        places[start] = workspace(directory / f"seed-{seed}" / start, params, settings)
        link(places[start] / "data", directory / "data")
    for start, stage in STAGES:
        if start == "random":
            link(places["random"] / START, places["pretrained"] / START)
        run_stage(places[start], stage)
    begin = time.monotonic()
    scores, device = scored(places, load(EvaluationConfig, "evaluation", params))
    stages = {name: figures(places[start], stage) for (start, stage), name in STAGES.items()}
    stages[SCORING] = {"seconds": time.monotonic() - begin}
    return {
        "seed": seed,
        "device": device,
        **{package: metadata.version(package) for package in ("torch", "transformers", "mteb")},
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "stages": stages,
        "scores": scores,
    }


def scored(places: dict[str, Path], evaluation: EvaluationConfig) -> tuple[dict[str, dict[str, float]], str]:
    """Main metric of BM25 and of each start's model on the local retrieval tasks, and what computed it."""
    import torch

    from benchmarks.retrieval import retrieval_scores
    from neobert.evaluation.bm25 import BM25Search
    from neobert.evaluation.models import EncodeSettings, open_model

    settings = EncodeSettings.of(evaluation)
    scores = {"bm25": retrieval_scores("bm25", BM25Search(), evaluation)}
    for start, place in places.items():
        model = open_model(str(place / "models/contrastive"), start, settings)
        scores[start] = retrieval_scores(start, model, evaluation)
    return scores, torch.cuda.get_device_name() if settings.device == "cuda" else f"{os.cpu_count()} CPU cores"


def figures(place: Path, stage: str) -> dict[str, Any]:
    """Wall seconds of a stage, tokens a second in steady state (median of its logs), and its last metrics."""
    (speed,) = place.glob(f"runs/{stage}-{'[0-9a-f]' * 16}/throughput.jsonl")  # not one set aside (.complete)
    rates = [json.loads(line)["tokens_per_second"] for line in speed.read_text().splitlines()]
    metrics = read_json(place / "reports" / REPORTS[stage] / "metrics.json")
    return {"seconds": spent(place, stage)["seconds"], "tokens_per_second": statistics.median(rates), **metrics}


def markdown(results: list[dict[str, Any]]) -> str:
    """Scores, a row a task; then stages, with what each took and its held-out loss."""
    lines = ["| nDCG@10 | " + " | ".join(COLUMNS.values()) + " | pretrained minus random |", "|---|" + "---:|" * 4]
    for task in results[0]["scores"]["bm25"]:
        values = {name: [result["scores"][name][task] for result in results] for name in COLUMNS}
        gain = [a - b for a, b in zip(values["pretrained"], values["random"], strict=True)]
        cells = [f"{values['bm25'][0]:.4f}", spread(values["random"]), spread(values["pretrained"]), spread(gain, "+")]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    lines += ["", "| stage | seconds | tokens | tokens/s | held-out loss |", "|---|" + "---:|" * 4]
    for stage in (*STAGES.values(), SCORING):
        rows = [result["stages"][stage] for result in results]
        cells = [f"{statistics.mean(row['seconds'] for row in rows):.0f}"]
        cells += [
            spread([row[key] for row in rows]) if key in rows[0] else "" for key in ("tokens", "tokens_per_second")
        ]
        cells.append(spread([row["eval_loss"] for row in rows]) if "eval_loss" in rows[0] else "")
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    total = sum(result["seconds"] for result in results)
    devices = " and ".join(sorted({result["device"] for result in results}))
    lines += ["", f"{len(results)} seed(s), each on one device ({devices}): {total:,.0f} device seconds in all."]
    return "\n".join(lines)


def table(files: list[Path], document: Path | None) -> None:
    """Print the tables of seeds' files, put them into `document`, and print everything as JSON.

    Raises:
        PipelineError: a seed is there twice, BM25 differs between them (other tasks), or the document has no markers.
    """
    results = sorted((read_json(file) for file in files), key=lambda result: result["seed"])
    if len({result["seed"] for result in results}) < len(results):
        raise PipelineError("table: the same seed is there twice")
    if any(result["scores"]["bm25"] != results[0]["scores"]["bm25"] for result in results):
        raise PipelineError("table: BM25's scores differ between the files, so their tasks or programs do")
    if document:
        between(document, MARKER)
    print(text := markdown(results))
    if document:
        write_between(document, MARKER, text)
    print(json.dumps({"command": "python -m benchmarks.from_scratch", "results": results}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="make params, rows and pairs")
    preparing.add_argument("directory", type=Path)
    preparing.add_argument("--profile", nargs="+", default=["embedded-gpu"], help="profiles, by name or file, in order")
    seeding = commands.add_parser("seed", help="train and score with one seed")
    seeding.add_argument("directory", type=Path)
    seeding.add_argument("seed", type=int)
    tabling = commands.add_parser("table", help="make the tables of seeds' files")
    tabling.add_argument("files", type=Path, nargs="+")
    tabling.add_argument("--write", type=Path, help="put them into this document, between its markers")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, for the stage at work to end too
    if arguments.command == "prepare":
        prepare(arguments.directory, arguments.profile)
    elif arguments.command == "seed":
        result = run_seed(arguments.directory, arguments.seed)
        write_json(arguments.directory / f"seed-{arguments.seed}.json", result)
        print(json.dumps(result))
    else:
        table(arguments.files, arguments.write)


if __name__ == "__main__":
    try:
        main()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
