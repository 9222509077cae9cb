"""What pretraining is worth: the same fine-tuning from the pretrained encoder and from random weights, over seeds.

    python -m benchmarks.pretraining_value [--seeds 3] [--steps N] [--skip-warmup] [--write docs/experiments.md]

Runs the contrastive stage's own code with params.yaml's settings on data/pairs, from models/long_context, and scores
each result on the local retrieval tasks. `--skip-warmup` leaves out the embedding warm-up, so that all that is learnt
is learnt through the transformer. Needs `dvc repro contrastive_preprocess longer_context` first. Prints a table (mean
and standard deviation over seeds), which `--write` also puts into a document, then one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.ablation.table import spread
from benchmarks.markers import between, write_between
from benchmarks.retrieval import retrieval_scores
from neobert.config.contrastive import ContrastiveConfig
from neobert.config.evaluation import EvaluationConfig
from neobert.config.load import load
from neobert.config.runtime import RuntimeConfig
from neobert.contrastive.finetune import Places, finetune
from neobert.evaluation.models import EncodeSettings, open_model

MARKER = "pretraining_value"
STARTS = {"pretrained": False, "random weights": True}


def scores_of(config: ContrastiveConfig, seed: int, evaluation: EvaluationConfig) -> dict[str, float]:
    """Fine-tune with `seed` and score the result on the local retrieval tasks."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        places = Places(
            Path("data/pairs"), Path("models/long_context"), Path("data/tokenizer"), Path("data/tokens"), scratch
        )
        runtime = dataclasses.replace(load(RuntimeConfig, "runtime"), save_steps=None, logging_steps=50)
        done = finetune(config, places, runtime=runtime, seed=seed, world=1)
        done.start.save(scratch / "model", done.result.state_dict)
        model = open_model(str(scratch / "model"), "model", EncodeSettings.of(evaluation))
        return retrieval_scores("model", model, evaluation)


def markdown(results: dict[str, list[dict[str, float]]]) -> str:
    """A row a task, a column a start."""
    rows = [f"| task | {' | '.join(STARTS)} |", f"|---|{'---:|' * len(STARTS)}"]
    for task in results["pretrained"][0]:
        values = [spread([scores[task] for scores in results[name]]) for name in STARTS]
        rows.append(f"| {task} | {' | '.join(values)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None, help="contrastive steps (default: params.yaml's)")
    parser.add_argument("--skip-warmup", action="store_true")
    parser.add_argument("--write", type=Path, help="put the table into this document, between its markers")
    args = parser.parse_args()
    if args.write:
        between(args.write, MARKER)
    evaluation = load(EvaluationConfig, "evaluation")
    config = load(ContrastiveConfig, "contrastive")
    if args.steps is not None:
        trainer = dataclasses.replace(config.trainer, max_steps=args.steps, num_train_epochs=None)
        config = dataclasses.replace(config, trainer=trainer)
    if args.skip_warmup:
        config = dataclasses.replace(config, embedding_warmup=None)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in STARTS}
    for seed in range(args.seeds):
        for name, allow in STARTS.items():
            start = dataclasses.replace(config, allow_random_weights=allow)
            results[name].append(scores_of(start, seed, evaluation))
            print(f"seed {seed}, {name}: {results[name][-1]}", file=sys.stderr)
    print(table := markdown(results))
    if args.write:
        write_between(args.write, MARKER, table)
    print(
        json.dumps({"command": "python -m benchmarks.pretraining_value " + " ".join(sys.argv[1:]), "results": results})
    )


if __name__ == "__main__":
    main()
