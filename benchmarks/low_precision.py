"""Low precision by width: tokens/s and MFU (of the bf16 peak) against bf16, and what it costs in loss.

    python -m benchmarks.low_precision [--widths 768 1024 2048 4096] [--recipes torchao.float8_tensorwise ...]
        [--layers 4] [--rows 32] [--loss-steps 300] [--steps 10] [--rounds 5] [--set key=value ...]
    python -m benchmarks.low_precision --emulate     the loss gap alone, small, on a CPU

For each width the trainer's own step in bf16 and in each float8 recipe of TorchAO (or `--recipes`), in one process,
taking turns, a block of `--steps` steps a round after a warm-up; figures are medians over rounds. All then go on to
`--loss-steps` steps on the same batches from the same weights; a loss is the mean of the last fifth. The rows are a
Markov chain over few tokens, so that there is something to learn in so short a run. Layers are few, to fit; more of
them lessen the decoder's share. Prints a table, then one JSON object as its last line. `--emulate` compares with fp32.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.machine import device_name, machine
from benchmarks.subject import TrainerStep, params_with
from benchmarks.synthetic import FIRST, SyntheticRows
from benchmarks.train_step import figures, warmed
from neobert.errors import PipelineError
from neobert.training.low_precision.recipes import RECIPES, capability, sm
from neobert.training.metrics import peak_flops

FLOAT8 = ["torchao.float8_tensorwise", "torchao.float8_rowwise", "torchao.float8_rowwise_with_gw_hp"]
EMULATED = [*FLOAT8, "torchao.mxfp8_emulated"]
HEAD = 64
ACTIVE = 512
FOLLOWS = 0.8


class ChainRows(SyntheticRows):
    """Synthetic rows of few tokens, in which one follows from the one before it four times out of five.

    `ACTIVE` of the vocabulary's tokens occur, so that a run of seconds learns which, and then what follows what.
    """

    def __init__(self, rows: int, length: int, vocab_size: int, mean_document: float, seed: int = 0) -> None:
        super().__init__(rows, length, vocab_size, mean_document, seed)
        generator = np.random.default_rng(seed + 1)
        active = min(ACTIVE, vocab_size - FIRST)
        successor = np.arange(vocab_size, dtype=np.int32)
        successor[FIRST : FIRST + active] = FIRST + generator.permutation(active)
        ids, special = self._ids, self._ids < FIRST
        ids[~special] = FIRST + ids[~special] % active
        follows = (generator.random(ids.shape) < FOLLOWS) & ~special
        follows[:, 1:] &= ~special[:, :-1]
        for column in range(1, length):
            rows_here = follows[:, column]
            ids[rows_here, column] = successor[ids[rows_here, column - 1]]


def params_of(args: argparse.Namespace, width: int, recipe: str) -> dict[str, Any]:
    """The params of one subject."""
    changes = [
        *(f"model.hidden_size={width}", f"model.num_attention_heads={max(width // HEAD, 1)}"),
        *(f"model.intermediate_size={4 * width}", f"model.num_hidden_layers={args.layers}"),
        *(f"packing.max_length={args.length}", f"model.max_position_embeddings={args.length}"),
        *(f"trainer.{key}={args.rows}" for key in ("global_batch_size", "per_device_train_batch_size")),
        *(f"trainer.torch_compile={str(not args.emulate).lower()}", f"trainer.mixed_precision={args.base}"),
        f"optimizer.lr={min(1e-3, 0.768 / width)}",  # wider models take smaller steps
        *args.set,
    ]
    if recipe != args.base:
        section, name = recipe.split(".")
        changes += [f"{section}.enable=true", f"{section}.recipe={name}"]
    return params_with(None, changes)


def subject_of(args: argparse.Namespace, width: int, recipe: str) -> TrainerStep:
    """A trainer's step in one precision."""
    params = params_of(args, width, recipe)
    mean = 0.3 * args.length
    return TrainerStep(recipe, params, "pretrain", args.vocab_size, mean, rows=ChainRows, emulate=args.emulate)


def final_loss(subject: TrainerStep, steps: int) -> float:
    """Go on to `steps` steps; the mean loss of the last fifth."""
    tail = max(steps // 5, 1)
    while subject.index < steps - tail:
        subject.step()
    subject.train_step.read_window()
    while subject.index < steps:
        subject.step()
    return subject.train_step.read_window()["loss"]


def measure(args: argparse.Namespace, width: int, peak: float | None) -> dict[str, dict[str, Any]]:
    """All subjects of one width; one that fails is kept with its reason."""
    subjects, results = [], dict[str, dict[str, Any]]()
    for recipe in [args.base, *args.recipes]:
        try:
            subjects.append(warmed(subject_of(args, width, recipe), 0 if args.emulate else args.warmup))
        # A package's compilation may fail, or its rules leave no layer; the other figures shall not be lost.
        except Exception as error:
            if recipe == args.base:
                raise
            results[recipe] = {"failed": f"{type(error).__name__}: {error}"}
    for _ in range(0 if args.emulate else args.rounds):
        for subject in subjects:
            subject.block(args.steps, record=True)
    for subject in subjects:
        row = {} if args.emulate else figures(subject, peak)
        results[subject.name] = {**row, "loss": final_loss(subject, args.loss_steps)}
        subject.batches.close()  # its thread would keep the model alive
    return results


def line(width: int, name: str, row: dict[str, Any], base: dict[str, Any]) -> str:
    """One line of the table."""
    if "failed" in row:
        return f"{width:6d} {name:36} failed: {row['failed'][:100]}"
    speed = ""
    if "ms" in row:
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        gain = row["tokens_per_second"] / base["tokens_per_second"]
        speed = f"{row['tokens_per_second'] / 1e3:9.1f} {mfu:>7} {gain:6.2f}x "
    return f"{width:6d} {name:36} {speed}{row['loss']:9.4f} {row['loss'] - base['loss']:+9.4f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulate", action="store_true", help="a CPU's loss gap: no speeds, small sizes")
    parser.add_argument("--widths", type=int, nargs="+", help="default: 768 1024 2048 4096")
    parser.add_argument("--recipes", nargs="+", help="section.recipe; default: TorchAO's float8 recipes")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--rows", type=int, help="rows of a step")
    parser.add_argument("--length", type=int, help="tokens of a row")
    parser.add_argument("--vocab-size", type=int)
    parser.add_argument("--loss-steps", type=int)
    parser.add_argument("--steps", type=int, default=10, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each subject")
    parser.add_argument("--warmup", type=int, default=6, help="steps before any is timed")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other params, of all subjects")
    args = parser.parse_args()
    real = {"widths": [768, 1024, 2048, 4096], "layers": 4, "rows": 32, "length": 1024, "vocab_size": 32000}
    small = {"widths": [64, 128], "layers": 2, "rows": 8, "length": 128, "vocab_size": 512}
    for key, value in {**(small if args.emulate else real), "loss_steps": 60 if args.emulate else 300}.items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    args.base = "fp32" if args.emulate else "bf16"
    return args


def check(args: argparse.Namespace) -> None:
    """Fill in the recipes that can run here.

    Raises:
        PipelineError: no GPU has float8, and nothing is to be emulated; or a recipe is none.
    """
    here = capability()
    if not args.emulate and (here is None or here < (8, 9)):
        raise PipelineError(
            f"float8 needs a GPU of sm_89 or newer, and {f'this one is {sm(here)}' if here else 'there is none'}; "
            "--emulate measures the loss gap on a CPU"
        )
    known = [".".join(key) for key, recipe in RECIPES.items() if not recipe.gone]
    if args.recipes is None:
        args.recipes = EMULATED if args.emulate else FLOAT8
    unknown = [name for name in args.recipes if name not in known]
    if unknown:
        raise PipelineError(f"--recipes: {', '.join(unknown)}; there are {', '.join(known)}")


def main() -> None:
    args = arguments()
    try:
        check(args)
    except PipelineError as error:
        raise SystemExit(f"error: {error}") from None
    peak = peak_flops(device_name())
    speed = "" if args.emulate else f"{'ktok/s':>9} {'MFU':>7} {'/ base':>7} "
    print(
        f"{device_name()}, torch {torch.__version__}, {args.layers} layers, {args.rows} x {args.length} tokens a step"
    )
    print(f"{'width':>6} {'recipe':36} {speed}{'loss':>9} {'gap':>9}")
    results = {}
    for width in args.widths:
        torch._dynamo.reset()
        results[width] = measure(args, width, peak)
        for name, row in results[width].items():
            print(line(width, name, row, results[width][args.base]), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    print(
        json.dumps(
            {
                "command": "python -m benchmarks.low_precision " + " ".join(sys.argv[1:]),
                **machine(),
                "emulated": args.emulate,
                "layers": args.layers,
                "tokens_per_step": args.rows * args.length,
                "loss_steps": args.loss_steps,
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
