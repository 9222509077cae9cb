"""The training loop; pretraining, longer context and contrastive fine-tuning are it with other data and objective.

A step takes the global batch that starts at `samples_seen`, whatever the number of ranks, adds up the gradients
of its micro-batches and updates once. The loop itself only launches work: the next batches are made by a thread,
the learning rate is a function of the step, and the host waits for the device only where it logs, evaluates,
saves or ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neobert.config.low_precision import LinearLayersConfig
from neobert.config.optimizer import OptimizerConfig
from neobert.config.runtime import RuntimeConfig
from neobert.config.scheduler import SchedulerConfig
from neobert.config.trainer import LoopConfig
from neobert.errors import PipelineError
from neobert.packing.loader import loader_settings
from neobert.training import resume
from neobert.training.assemble import assemble
from neobert.training.checkpoint import Checkpointer
from neobert.training.distributed import Workers
from neobert.training.host import keep_freed_memory
from neobert.training.model_checkpoint import SaveModel, full_state, model_writer
from neobert.training.numerics import SkipWatch
from neobert.training.prefetch import DeviceBatches
from neobert.training.record import Recorder
from neobert.training.schedule import multiplier, warmup_steps
from neobert.training.scratch import PREEMPTED
from neobert.training.signals import Preempted, StopRequest
from neobert.training.source import Batch, BatchSource
from neobert.training.step import TrainStep, seed_step
from neobert.training.timing import Timing

log = logging.getLogger(__name__)
Evaluate = Callable[[nn.Module, int], dict[str, float]]


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes:
        history: a row a log (step, epoch, samples, loss, grad_norm, lr, skipped, ...) or evaluation (step, eval_...).
        metrics: the last values, for metrics.json.
        state_dict: the objective's full state on the CPU.
    """

    history: list[dict[str, Any]]
    metrics: dict[str, float]
    state_dict: dict[str, Tensor]


def accumulation_steps(config: LoopConfig, world: int) -> int:
    """Micro-batches of a step on each rank.

    Raises:
        PipelineError: the batch sizes do not divide, or gradient_accumulation_steps disagrees.
    """
    micro = config.per_device_train_batch_size * world
    if config.global_batch_size % micro:
        raise PipelineError(
            f"trainer.global_batch_size ({config.global_batch_size}) must be a multiple of "
            f"per_device_train_batch_size x world size ({config.per_device_train_batch_size} x {world} = {micro})"
        )
    steps = config.global_batch_size // micro
    if config.gradient_accumulation_steps not in (None, steps):
        raise PipelineError(
            f"trainer.gradient_accumulation_steps: {config.gradient_accumulation_steps} disagrees with "
            f"global_batch_size / (per_device_train_batch_size x world size) = {steps}; set it to null or {steps}"
        )
    return steps


def train(
    objective: nn.Module,
    source: BatchSource,
    *,
    trainer: LoopConfig,
    optimizer: OptimizerConfig,
    scheduler: SchedulerConfig,
    runtime: RuntimeConfig,
    seed: int,
    scratch: Path,
    stage: str,
    evaluate: Evaluate | None = None,
    evaluate_first: bool = False,
    save_model: SaveModel | None = None,
    low_precision: LinearLayersConfig | None = None,
) -> TrainResult:
    """Train `objective` (see `source.Objective`) on `source` for `trainer.max_steps` steps.

    Args:
        seed: of dropout and every other random choice within a step.
        scratch: where checkpoints and histories are kept, and looked for (see `scratch.open_scratch`).
        stage: names the run in logs.
        evaluate: (wrapped objective, step) -> figures; called in eval mode without gradients, on every rank, every
            `trainer.eval_steps` and at the end.
        evaluate_first: evaluate before the first step too, as step 0.
        save_model: writes a model directory from the objective's full CPU state; called with each checkpoint.
        low_precision: what linear layers compute in; None is `trainer.mixed_precision` alone.

    Raises:
        PipelineError: contradictory batch sizes, an unusable checkpoint, too many skipped steps in a row, a
            checkpoint that could not be written, or (Preempted) a signal.
    """
    workers = Workers(runtime.distributed, trainer.mixed_precision)
    micro_batches = accumulation_steps(trainer, workers.world)
    set_determinism(trainer.deterministic)
    seed_step(seed, -1, 0)
    if workers.device.type == "cpu":
        keep_freed_memory()
    module, updater = assemble(objective, trainer, optimizer, workers, low_precision)
    timing = Timing(workers.device, runtime.timing)
    saver = Checkpointer(
        scratch / resume.CHECKPOINTS,
        workers,
        runtime.save_total_limit,
        committed=model_writer(scratch, runtime.save_total_limit, save_model),
    )
    step = TrainStep(module, objective, updater, workers, trainer, timing, saver.before_update)
    start = resume.restore(step, scratch, stage, runtime.resume_from_checkpoint, scheduler, trainer.max_steps)
    recorder = Recorder(scratch, stage, workers, runtime, timing, start.step)
    log.info(
        "%s: steps %d to %d on %s, %d rank(s) x %d micro-batch(es) of %d samples, %s, %s, %s parameters",
        *(stage, start.step, trainer.max_steps, workers.describe(), workers.world, micro_batches),
        *(trainer.per_device_train_batch_size, trainer.mixed_precision),
        "compiled" if trainer.torch_compile else "eager",
        f"{sum(p.numel() for p in step.parameters):,}",
    )
    if warmup_steps(scheduler, trainer.max_steps) >= trainer.max_steps:
        log.warning("%s: no step is left after the warmup, so the learning rate stays below optimizer.lr", stage)
    loop = _Loop(
        *(source, step, trainer, optimizer.lr, scheduler, runtime, seed),
        *(workers, saver, recorder, evaluate, scratch, start),
    )
    with contextlib.closing(recorder), contextlib.closing(saver):
        if evaluate_first and start.step == 0:
            loop.check(0)
        loop.run()
    return TrainResult(recorder.history.rows if recorder.history else [], recorder.final(), full_state(objective))


@dataclass
class _Loop:
    """What `train` has set up, and the loop over steps."""

    source: BatchSource
    step: TrainStep
    trainer: LoopConfig
    peak_lr: float
    scheduler: SchedulerConfig
    runtime: RuntimeConfig
    seed: int
    workers: Workers
    saver: Checkpointer
    recorder: Recorder
    evaluate: Evaluate | None
    scratch: Path
    start: resume.Start

    def run(self) -> None:
        """The steps from `start` to `max_steps`."""
        steps = range(self.start.step, self.trainer.max_steps)
        watch = SkipWatch(self.trainer.max_skipped_steps, self.step.window["skipped_in_row"])
        loader = loader_settings(
            self.runtime.num_workers,
            self.runtime.prefetch_factor,
            self.runtime.pin_memory,
            self.runtime.persistent_workers,
            gpu=self.workers.device.type == "cuda",
            ranks_on_host=self.workers.ranks_on_host,
        )
        device, timing = self.workers.device, self.step.timing
        ready = DeviceBatches(self.batches, steps, device, loader.workers, loader.ahead, timing, loader.pin)
        with StopRequest(self.workers) as stop, contextlib.closing(ready):
            for index in steps:
                with self.step.timing.section("data_wait"):
                    batches = next(ready)
                seed_step(self.seed, index, self.workers.rank)
                lr = self.peak_lr * multiplier(index, self.scheduler, self.trainer.max_steps)
                if not self.step.run(batches, lr, stop.poll):
                    self.stop(index, stop)
                self.recorder.stepped(batches, self.step.objective)
                # Nothing above waits for the device; what follows may, and rarely runs.
                if not loader.persistent and self.evaluation_due(index + 1):
                    ready.pause()
                self.after(index + 1, lr)
                if watch.too_many(index + 1):
                    self.give_up(index, batches)

    def samples(self, done: int) -> int:
        """The position after the run's first `done` steps, those before a resume at the batch size that they had.

        A step counts as global_batch_size, though a contrastive batch may hold fewer: sources, and resuming, find the
        step by division. What batches held is `terms_per_step` (see `record`).
        """
        return self.start.samples + (done - self.start.step) * self.trainer.global_batch_size

    def batches(self, index: int) -> list[Batch]:
        """This rank's micro-batches of step `index` (called in the prefetching thread)."""
        size, micro = self.trainer.global_batch_size, self.trainer.per_device_train_batch_size
        with self.step.timing.section("collate"):
            return self.source.micro_batches(self.samples(index), size, micro, self.workers.rank, self.workers.world)

    def after(self, done: int, lr: float) -> None:
        """Log, evaluate and save, where due after `done` steps."""
        last = done == self.trainer.max_steps
        if last or done % self.runtime.logging_steps == 0:
            with self.step.timing.section("logging"):
                samples = self.samples(done)
                row = {"step": done, "samples": samples, "epoch": samples / self.source.samples_per_epoch}
                self.recorder.logged({**row, "lr": lr, **self.step.read_window()}, self.trainer.max_steps)
        if self.evaluation_due(done):
            self.check(done)
        if last or _due(done, self.runtime.save_steps) or self.saver.failed():
            self.save(done, wait=last)

    def evaluation_due(self, done: int) -> bool:
        """Whether to evaluate after `done` steps."""
        return done == self.trainer.max_steps or _due(done, self.trainer.eval_steps)

    def check(self, done: int) -> None:
        """Evaluate, where there is something to; the random state of later steps does not depend on it."""
        if self.evaluate is None:
            return
        with self.recorder.excluded("evaluation"), torch.no_grad(), self.workers.autocast():
            figures = self.evaluate(self.step.module.eval(), done)
            self.step.module.train()
            self.recorder.evaluated(done, figures)

    def save(self, done: int, wait: bool) -> None:
        """Start a checkpoint of the state after `done` steps."""
        info = {
            "step": done,
            "samples_seen": self.samples(done),
            "max_steps": self.trainer.max_steps,
            "seed": self.seed,
            "world": self.workers.world,
            "resumed_from": self.start.asked,
        }
        with self.recorder.excluded("checkpoint"):
            self.recorder.sync()
            self.saver.save(done, self.step.state(), info, wait=wait)

    def stop(self, done: int, request: StopRequest) -> None:
        """Save and leave, told by a signal."""
        self.save(done, wait=True)
        if self.workers.is_main:
            (self.scratch / PREEMPTED).write_text(f"{request.received or 'signal on another rank'} at step {done}\n")
        again = "run the same command again to go on"
        if self.runtime.resume_from_checkpoint is False:
            again = "set runtime.resume_from_checkpoint: auto to go on; with false the same command starts anew"
        received = request.received or "a signal"
        raise Preempted(f"{self.recorder.stage}: stopped by {received} after step {done} and saved there; {again}")

    def give_up(self, index: int, batches: list[Batch]) -> None:
        """Leave a run whose steps are no longer sound, with the batch at hand."""
        path = self.scratch / f"skipped-step-{index}-rank-{self.workers.rank}.pt"
        torch.save(batches, path)
        raise PipelineError(
            f"{self.recorder.stage}: {self.trainer.max_skipped_steps} steps in a row up to step {index + 1} had a "
            f"non-finite (or spiking) loss or gradient; weights are those before them, the last batch is in {path}. "
            "Lower optimizer.lr or check the data; earlier checkpoints are intact"
        )


def _due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0


def set_determinism(deterministic: bool) -> None:
    """Choose between the fastest kernels and bitwise repeatable ones; before the process's first matrix product."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; else torch refuses
    torch.use_deterministic_algorithms(deterministic)
