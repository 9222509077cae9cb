"""What a run writes down: history rows (equal for equal runs), and its speed (never in a DVC out).

    history.jsonl     step, epoch, samples, loss, grad_norm, lr, skipped, the objective's metrics; or step, eval_...
                      (loss, grad_norm and metrics are left out where every step since the last row was skipped)
    throughput.jsonl  step, tokens/s, steps/s, terms a step, MFU, devices, seconds; with runtime.timing, where they went

`samples` and `epoch` are the position in the data: global_batch_size a step. A contrastive batch may hold fewer pairs
(of a small source, of repeated texts); `terms_per_step` is what the loss was really of.

Trackers (`runtime.report_to`) get the same rows. Tokens/s leaves out evaluation and saving: their seconds are taken off
the clock between two logs.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from neobert.config.runtime import RuntimeConfig
from neobert.training.distributed import Workers
from neobert.training.metrics import History, JsonLines, peak_flops
from neobert.training.resume import HISTORY
from neobert.training.source import HOST_KEYS, Batch, Objective
from neobert.training.timing import Timing
from neobert.training.trackers import Trackers

log = logging.getLogger(__name__)


class Recorder:
    """History and speed of one run; every rank has one, rank 0 writes."""

    def __init__(
        self, scratch: Path, stage: str, workers: Workers, runtime: RuntimeConfig, timing: Timing, start: int
    ) -> None:
        self.stage, self.workers, self.runtime, self.timing = stage, workers, runtime, timing
        self.history = History(scratch / HISTORY, start) if workers.is_main else None
        self._speed = JsonLines(scratch / "throughput.jsonl") if workers.is_main else None
        self.trackers = Trackers(scratch, stage, runtime, start) if workers.is_main else None
        name = torch.cuda.get_device_name(workers.device) if workers.device.type == "cuda" else None
        self._device, self._peak = name or "CPU", peak_flops(name)
        self._flops: float | None = 0.0
        self._tokens = self._terms = self._steps = 0
        self._clock = self._last = time.perf_counter()

    @contextlib.contextmanager
    def excluded(self, section: str) -> Iterator[None]:
        """Time a section that does not count in tokens/s."""
        if self.workers.device.type == "cuda":
            torch.cuda.synchronize()  # else the section would be charged with the steps still in the queue
        start = time.perf_counter()
        with self.timing.section(section):
            yield
        self._clock += time.perf_counter() - start

    def stepped(self, micro_batches: list[Batch], objective: Objective) -> None:
        """Count a step's tokens, terms and FLOPs (host arithmetic)."""
        self._steps += 1
        for batch in micro_batches:
            host = {key: batch.get(key, 0) for key in HOST_KEYS}
            self._tokens += host["tokens"]
            self._terms += host["count"]
            flops = objective.train_flops(host)
            self._flops = None if flops is None or self._flops is None else self._flops + flops

    def logged(self, row: dict[str, Any], max_steps: int) -> None:
        """Write a history row and the speed since the last one; the caller has just waited for the device."""
        now = time.perf_counter()
        seconds = max(now - self._clock, 1e-9)
        speed = {
            "step": row["step"],
            "tokens_per_second": self._tokens * self.workers.world / seconds,
            "steps_per_second": self._steps / seconds,
            "terms_per_step": self._terms * self.workers.world / max(self._steps, 1),
            "mfu": None if self._flops is None or self._peak is None else self._flops / seconds / self._peak,
            "device": self._device,
            "devices": self.workers.world,
            "seconds": now - self._last,  # evaluations and saves included
        }
        left = (max_steps - row["step"]) * seconds / max(self._steps, 1)
        if self.timing.enabled:
            speed["timing"] = self.timing.report()
        if self.history is not None and self._speed is not None:
            self.history.append(row)
            self._speed.append(speed)
            self._track("train", row)
            self._track("speed", speed)
            self._say(row, speed, max_steps, left)
        self._flops, self._tokens, self._terms, self._steps = 0.0, 0, 0, 0
        self._clock, self._last = now, now

    def _track(self, prefix: str, row: dict[str, Any]) -> None:
        if self.trackers is not None:
            self.trackers.log(prefix, row["step"], {key: value for key, value in row.items() if key != "step"})

    def _say(self, row: dict[str, Any], speed: dict[str, Any], max_steps: int, left: float) -> None:
        formats = {"loss": "loss {:.4f}", "lr": "lr {:.3g}", "grad_norm": "norm {:.3g}"}
        figures = [text.format(row[name]) for name, text in formats.items() if name in row]
        if speed["tokens_per_second"]:
            figures.append(f"{speed['tokens_per_second'] / 1e3:,.1f}k tokens/s")
        if speed["mfu"] is not None:
            figures.append(f"MFU {speed['mfu']:.1%}")
        if row["skipped"]:
            figures.append(f"{row['skipped']:.0f} steps skipped")
        log.info("%s %d/%d: %s, %.0f s left", self.stage, row["step"], max_steps, ", ".join(figures), left)
        for name, times in speed.get("timing", {}).items():
            log.info("  %-14s p50 %.2f ms, p95 %.2f ms, average %.2f ms", name, *list(times.values())[:3])

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Write an evaluation's row."""
        row = {f"eval_{name}": value for name, value in figures.items()}
        if self.history is not None:
            self.history.append({"step": step, **row})
            self._track("eval", {"step": step, **figures})
            log.info("%s %d: %s", self.stage, step, ", ".join(f"{k} {v:.4f}" for k, v in row.items()))

    def final(self) -> dict[str, float]:
        """The last value of every figure, for metrics.json (empty but on rank 0)."""
        merged: dict[str, float] = {}
        for row in self.history.rows if self.history is not None else []:
            merged |= row
        return {key: value for key, value in merged.items() if key != "lr"}

    def sync(self) -> None:
        """Make the history durable before a checkpoint that implies it."""
        if self.history is not None:
            self.history.sync()

    def close(self) -> None:
        """Close the files, and end the trackers."""
        if self.trackers is not None:
            self.trackers.close()
        if self.history is not None and self._speed is not None:
            self.history.close()
            self._speed.close()
