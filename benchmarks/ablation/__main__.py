"""Run a sweep, or make its table again.

    python -m benchmarks.ablation benchmarks/sweeps/pretraining.yaml [--seeds 0 1 2] [--only VARIANT ...]
    python -m benchmarks.ablation benchmarks/sweeps/pretraining.yaml --table [--rev COMMIT] --write docs/experiments.md

Each run is `dvc exp run --name <sweep>-<variant>-<seed> -S ... <target>` on the last commit. A run that is there with
the same params is left out, so the same command goes on after an interruption, and DVC's cache of runs answers for what
another commit has computed already. A run that fails is named at the end; the others go on. Prints the table, then one
JSON object as its last line, which is also kept as benchmarks/results/ablation_<sweep>.json with a picture beside it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.ablation.sweep import Metric, Run, Sweep, plan, read_sweep
from benchmarks.ablation.table import Values, markdown, picture
from benchmarks.ablation.workspace import Workspace, finished, head, output, shown
from benchmarks.markers import between, write_between
from neobert.errors import PipelineError
from neobert.io import write_json

PROJECT = Path(".")
RESULTS = Path("benchmarks/results")


def main() -> None:
    arguments = parse_arguments()
    sweep = read_sweep(arguments.file)
    marker = f"ablation:{sweep.name}"
    if arguments.write:
        between(arguments.write, marker)
    every = plan(sweep, PROJECT)
    commit = output(PROJECT, "git", "rev-parse", arguments.rev) if arguments.table else head(PROJECT)
    failed = [] if arguments.table else run_all(sweep, chosen(every, arguments), commit)
    results = gather(sweep, [run for run in every if finished(PROJECT, commit, run)], shown(PROJECT, commit))
    table = markdown(sweep, results)
    print(table)
    if arguments.write:
        write_between(arguments.write, marker, table)
    record = recorded(arguments.file, sweep, commit, results)
    write_json(RESULTS / f"ablation_{sweep.name}.json", record)
    picture(sweep, results, RESULTS / f"ablation_{sweep.name}.png")
    print(json.dumps(record))
    if failed:
        raise PipelineError("these runs failed; the same command runs them again:\n  " + "\n  ".join(failed))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="sweep file")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these of its seeds")
    parser.add_argument("--only", nargs="+", help="only these of its variants")
    parser.add_argument("--table", action="store_true", help="run nothing: table, results and picture of what there is")
    parser.add_argument("--rev", default="HEAD", help="with --table: the commit that was swept")
    parser.add_argument("--write", type=Path, help="put the table into this document, between its markers")
    return parser.parse_args()


def chosen(runs: list[Run], arguments: argparse.Namespace) -> list[Run]:
    """The runs that --seeds and --only leave.

    Raises:
        PipelineError: one of them is not in the sweep.
    """
    for option, asked, known in (
        ("--only", arguments.only, {run.variant for run in runs}),
        ("--seeds", arguments.seeds, {run.seed for run in runs}),
    ):
        if unknown := set(asked or ()) - known:
            raise PipelineError(f"{option}: the sweep has no {unknown}; there are {sorted(known)}")
    return [
        run
        for run in runs
        if run.variant in (arguments.only or [run.variant]) and run.seed in (arguments.seeds or [run.seed])
    ]


def run_all(sweep: Sweep, runs: list[Run], commit: str) -> list[str]:
    """Run what is not there yet, seed by seed so that an early stop leaves whole comparisons; what failed, by log.

    Raises:
        PipelineError: a finished run lacks a metric that the sweep asks for (found after the first one).
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, as Ctrl-C is, for the run at work
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would runs
    place = Path(os.environ.get("NEOBERT_RUNS_DIR", "runs"))
    failed = []
    with Workspace.open(PROJECT.resolve(), commit, place, sweep.name) as workspace:
        left = sorted((r for r in runs if not finished(PROJECT, commit, r)), key=lambda r: sweep.seeds.index(r.seed))
        say(f"{len(runs) - len(left)} of {len(runs)} runs are there; {len(left)} to go")
        for number, run in enumerate(left, 1):
            start = time.monotonic()
            done = workspace.run(run, sweep.target)
            say(f"{number}/{len(left)} {run.name}: {'done' if done else 'FAILED'}, {time.monotonic() - start:.0f} s")
            if not done:
                failed.append(f"{run.name}: {workspace.log(run)}")
            elif number == 1:
                gather(sweep, [run], shown(PROJECT, commit))
    return failed


def gather(sweep: Sweep, runs: list[Run], experiments: dict[str, dict[str, Any]]) -> dict[str, Values]:
    """The metrics of those runs that there are, by variant and seed.

    Raises:
        PipelineError: there are none, or an experiment lacks a metric.
    """
    results: dict[str, Values] = {}
    for run in runs:
        if run.name in experiments:
            values = {metric.label: _value(metric, experiments[run.name], run.name) for metric in sweep.metrics}
            results.setdefault(run.variant, {})[run.seed] = values
    if not results:
        raise PipelineError(f"sweep {sweep.name}: has no run on this commit; leave --table out, or give --rev")
    return results


def _value(metric: Metric, files: dict[str, Any], name: str) -> float:
    value: Any = files.get(metric.file, {})
    for part in metric.key.split("."):
        if not isinstance(value, dict) or part not in value:
            have = ", ".join(value) if isinstance(value, dict) else repr(value)
            raise PipelineError(f"metrics: {name} has no {metric.key} in {metric.file}; at {part} there is: {have}")
        value = value[part]
    return float(value)


def recorded(file: Path, sweep: Sweep, commit: str, results: dict[str, Values]) -> dict[str, Any]:
    """All that is known of the sweep, for the results file."""
    device = f"{os.cpu_count()} CPU cores"
    if shutil.which("nvidia-smi"):
        device = output(PROJECT, "nvidia-smi", "--query-gpu=name", "--format=csv,noheader").replace("\n", ", ")
    return {
        "command": f"python -m benchmarks.ablation {file}",
        "commit": commit,
        "device": device,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("torch", "dvc")},
        "target": sweep.target,
        "common": sweep.common,
        "variants": sweep.variants,
        "results": results,
    }


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
