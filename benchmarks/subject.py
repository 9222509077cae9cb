"""What a benchmark of steps times: something that can run some steps, and the trainer's own step as one such thing.

The trainer's step is `neobert.training.step.TrainStep` as `train` assembles it, fed by its prefetching, on
synthetic packed rows that are the same everywhere. Times are taken around blocks of steps, with one wait for the
device at each end.
"""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch._dynamo.utils import counters

from benchmarks.synthetic import CLS, MASK, PAD, SEP, SyntheticRows
from neobert.config.load import read_params
from neobert.config.profile import merge
from neobert.config.runtime import DistributedConfig
from neobert.config.schema import parse
from neobert.config.validate import section_class
from neobert.errors import PipelineError
from neobert.model.heads import MaskedLM
from neobert.training.assemble import assemble
from neobert.training.distributed import Workers
from neobert.training.low_precision.recipes import enabled, require
from neobert.training.masking import MaskTable
from neobert.training.mlm import MlmSource
from neobert.training.objective import PretrainModel
from neobert.training.prefetch import DeviceBatches
from neobert.training.step import TrainStep, seed_step
from neobert.training.timing import Timing

ROWS = 2048


def params_with(profile: str | None, changes: list[str]) -> dict[str, Any]:
    """params.yaml, then a profile, then `key.sub=value` changes (values are YAML)."""
    params = copy.deepcopy(read_params())
    yaml = YAML(typ="safe", pure=True)
    if profile:
        merge(params, yaml.load(Path(f"profiles/{profile}.yaml").read_text()))
    for change in changes:
        key, _, value = change.partition("=")
        nested: Any = yaml.load(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        merge(params, nested)
    return params


def section(params: dict[str, Any], key: str) -> Any:
    """A typed section."""
    problems: list[str] = []
    parsed = parse(section_class(key), params.get(key), key, problems)
    if problems:
        raise PipelineError("\n".join(problems))
    return parsed


def graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    return counters["stats"]["unique_graphs"]


class Timed:
    """Something that runs steps.

    Subclasses give `step()`, and `tokens` and `flops` (None: unknown) of the step just run; batches of packed rows
    differ in both.

    Attributes:
        seconds, work: of each recorded block, the mean seconds, and the mean tokens and FLOPs, of a step.
    """

    deterministic = False
    """Whether its steps run with `torch.use_deterministic_algorithms`, a switch of the process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.work: list[tuple[float, float | None]] = []
        self.peak_bytes = 0
        self.late_graphs = 0
        self.tokens = 0
        self.flops: float | None = None
        before = _allocated()
        self.build()
        self._own = _allocated() - before

    def build(self) -> None:
        """Make model, optimizer and data."""
        raise NotImplementedError

    def step(self) -> None:
        """One optimizer step, launched."""
        raise NotImplementedError

    def block(self, steps: int, record: bool) -> None:
        """Run `steps` steps; with `record` keep the mean seconds of one."""
        others = _allocated() - self._own
        compiled = graphs()
        torch.use_deterministic_algorithms(self.deterministic)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start, tokens, flops = time.perf_counter(), 0, 0.0
        for _ in range(steps):
            self.step()
            tokens, flops = tokens + self.tokens, flops + (self.flops or 0.0)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated() - others)
        if record:
            self.seconds.append((time.perf_counter() - start) / steps)
            self.work.append((tokens / steps, None if self.flops is None else flops / steps))
            self.late_graphs += graphs() - compiled


class TrainerStep(Timed):
    """The trainer's own step.

    Args:
        params: as params.yaml holds them; `phase` "longer_context" takes that section's packing, trainer and so on.
        mean_document: mean length of the synthetic documents.
        rows: what makes them.
        emulate: let a CPU compute a low-precision recipe that is refused there.

    Attributes:
        segments: number of segments of each step run so far.
    """

    def __init__(
        self,
        name: str,
        params: dict[str, Any],
        phase: str,
        vocab_size: int,
        mean_document: float,
        distributed: DistributedConfig | None = None,
        rows: type[SyntheticRows] = SyntheticRows,
        emulate: bool = False,
    ) -> None:
        sections = section(params, "longer_context") if phase == "longer_context" else None
        self.packing, self.trainer, self.optimizer, self.collator = (
            getattr(sections, key) if sections else section(params, key)
            for key in ("packing", "trainer", "optimizer", "datacollator")
        )
        self.model_config = section(params, "model")
        self.deterministic = self.trainer.deterministic
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as `train` does, before any product
        packages = (section(params, key) for key in ("torchao", "transformer_engine", "quartet2"))
        self.low_precision = enabled(*packages)
        if not emulate:
            require(self.low_precision)
        self.rows = rows
        self.vocab_size, self.mean_document = vocab_size, mean_document
        self.distributed = distributed or DistributedConfig()
        self.index = 0
        self.segments: list[int] = []
        super().__init__(name)

    def build(self) -> None:
        """As `train` does it; accumulation is left out, a step is one micro-batch."""
        size = self.trainer.per_device_train_batch_size
        self.data = self.rows(ROWS, self.packing.max_length, self.vocab_size, self.mean_document)
        table = MaskTable.of(MASK, [PAD, CLS, SEP, MASK], self.vocab_size)
        source = MlmSource(self.data, self.collator, table, seed=0)
        torch.manual_seed(0)
        self.objective = PretrainModel(
            MaskedLM(self.model_config, self.vocab_size, PAD),
            masked_logits_only=self.trainer.masked_logits_only_loss,
            accuracy=self.trainer.masked_accuracy,
        )
        workers = Workers(self.distributed, self.trainer.mixed_precision)
        self.timing = Timing(workers.device, enabled=False)
        module, updater = assemble(self.objective, self.trainer, self.optimizer, workers, self.low_precision)
        self.train_step = TrainStep(
            module, self.objective, updater, workers, self.trainer, self.timing, before_update=lambda: None
        )

        def make(index: int) -> list:
            with self.timing.section("collate"):
                whole = size * workers.world
                return source.micro_batches(index * whole, whole, size, workers.rank, workers.world)

        self.batches = DeviceBatches(make, range(1 << 40), workers.device, 1, 2, self.timing)

    def step(self) -> None:
        """One step of the loop, without its logging."""
        with self.timing.section("data_wait"):
            batches = next(self.batches)
        seed_step(0, self.index, 0)
        self.train_step.run(batches, self.optimizer.lr, stop=lambda: False)
        self.tokens = sum(batch["tokens"] for batch in batches)
        self.flops = sum(self.objective.train_flops(batch) for batch in batches)
        self.segments.append(sum(len(batch["cu_seqlens"]) - 1 for batch in batches))
        self.index += 1

    def breakdown(self, steps: int) -> dict[str, dict[str, float]]:
        """Where the time goes, measured over `steps` more steps."""
        self.timing.report()
        self.timing.enabled = True
        self.block(steps, record=False)
        figures = self.timing.report()
        self.timing.enabled = False
        return figures


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
