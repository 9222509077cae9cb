"""Compare two models on the local tasks, with intervals: ``python -m neobert.evaluation.compare A B``.

A and B are sentence-transformers models (directory or hub name), model directories of this pipeline, or ``bm25``. The
tasks and the way of encoding come from params.yaml's section ``evaluation``. Prints one table with the 95% interval
of each difference from a paired bootstrap (``neobert.evaluation.paired``); ``--json`` writes it to a file as well.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from neobert.config.evaluation import EvaluationConfig, LocalTask, model_label
from neobert.config.load import PARAMS, load, load_seed
from neobert.errors import PipelineError
from neobert.evaluation.evaluate import BM25_TYPES
from neobert.evaluation.local_tasks import local_task
from neobert.evaluation.models import EncodeSettings, open_model
from neobert.evaluation.paired import Difference, Examples, bootstrap, examples
from neobert.evaluation.run import Scores, run_tasks
from neobert.io import write_json


def answers(path: str, specs: list[LocalTask], config: EvaluationConfig) -> dict[str, Examples]:
    """The examples of each task as the model at ``path`` answers them."""
    label = model_label(path)
    model = open_model(path, label, EncodeSettings.of(config), config.trust_remote_code)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for spec in specs:
            scores, task = Scores(), local_task(spec)
            run_tasks(scores, label, model, [task], batch_size=config.mteb_batch_size, predictions=Path(scratch))
            scores.require_success()
            result = scores.results[label][0]
            reported = float(result.get_score())
            found[spec.name] = examples(spec, task, Path(scratch), dict(result.scores["test"][0]), reported)
    return found


def compare(a: str, b: str, config: EvaluationConfig, seed: int) -> dict[str, Difference]:
    """Difference ``b - a`` with its interval for each local task that both models can be run on.

    Raises:
        PipelineError: no such task, or a model that cannot be loaded or run.
    """
    specs = [s for s in config.tasks if "bm25" not in (a, b) or s.type in BM25_TYPES]
    if not specs:
        raise PipelineError("evaluation.tasks: declares no local task that both models can be run on")
    first, second = answers(a, specs, config), answers(b, specs, config)
    return {spec.name: bootstrap(first[spec.name], second[spec.name], seed) for spec in specs}


def table(a: str, b: str, config: EvaluationConfig, found: dict[str, Difference]) -> str:
    """The comparison as a Markdown table; a star marks an interval without zero."""
    lines = [
        f"| task | metric | {a} | {b} | difference | 95% interval | examples |",
        "|---|---|---:|---:|---:|---|---:|",
    ]
    for spec in config.tasks:
        if spec.name in found:
            d = found[spec.name]
            star = " *" if d.clear else ""
            interval = f"{d.low:+.4f} to {d.high:+.4f}{star}"
            cells = [spec.name, spec.main_metric, f"{d.a:.4f}", f"{d.b:.4f}", f"{d.b - d.a:+.4f}", interval, d.examples]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, "", "* the interval leaves out zero (paired bootstrap over examples)"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("a", help="sentence-transformers model, model directory, or bm25")
    parser.add_argument("b", help="the same; differences are b - a")
    parser.add_argument("--params", default=PARAMS)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("neobert").setLevel(logging.INFO)
    try:
        config = load(EvaluationConfig, "evaluation", args.params)
        found = compare(args.a, args.b, config, load_seed(args.params))
        if args.json:
            write_json(args.json, {name: {**vars(d), "clear": d.clear} for name, d in found.items()})
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(table(args.a, args.b, config, found))


if __name__ == "__main__":
    main()
