"""One phase of masked-language-model training; pretraining and longer context differ in data and params only."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neobert.config.datacollator import DataCollatorConfig
from neobert.config.dataset import DatasetConfig
from neobert.config.low_precision import LinearLayersConfig
from neobert.config.model import ModelConfig
from neobert.config.optimizer import OptimizerConfig
from neobert.config.runtime import RuntimeConfig
from neobert.config.scheduler import SchedulerConfig
from neobert.config.trainer import TrainerConfig
from neobert.errors import PipelineError
from neobert.io import runs_dir
from neobert.model.batch import FlatBatch
from neobert.model.gate import packing_gate
from neobert.model.heads import MaskedLM
from neobert.model.storage import ModelInfo, save_model
from neobert.packing.loader import advise_on_shards
from neobert.packing.sampling import WeightedOrder
from neobert.packing.shards import PackedDataset
from neobert.tokenization.tokenizer import open_tokenizer
from neobert.training import preflight
from neobert.training.distributed import local_device
from neobert.training.evaluate import evaluator, groups_of, spread
from neobert.training.launch import is_main_process
from neobert.training.low_precision.recipes import check_tokens
from neobert.training.masking import MaskTable
from neobert.training.mlm import MlmSource
from neobert.training.objective import PretrainModel
from neobert.training.prefetch import move
from neobert.training.reports import write_reports
from neobert.training.source import BatchSource
from neobert.training.trainer import Evaluate, set_determinism, train
from neobert.training.unpacked import UnpackedSource

log = logging.getLogger(__name__)
EVAL_SPLITS = ("validation", "eval", "test", "dev")


@dataclass(frozen=True)
class Phase:
    """A phase's params and places.

    Attributes:
        stage: its name in logs, runs and reports.
        packed: directory of packed splits; tokenizer: directory of the tokenizer.
        out: the model directory it makes; reports: where metrics.json, history.csv and loss.png go.
    """

    stage: str
    packed: Path
    tokenizer: Path
    out: Path
    reports: Path
    dataset: DatasetConfig
    collator: DataCollatorConfig
    trainer: TrainerConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    runtime: RuntimeConfig
    seed: int
    low_precision: LinearLayersConfig | None

    def run(self, model: MaskedLM, info: ModelInfo, scratch: Path) -> None:
        """Train `model` on the packed rows, and write the model directory and the reports.

        Raises:
            PipelineError: data, tokenizer and model do not belong together, or as `train`.
        """
        data = self._open("train")
        check_tokens(self.low_precision, self.trainer.per_device_train_batch_size * data.max_length)
        advise_on_shards(len(data.manifest["files"]), int(os.environ.get("WORLD_SIZE", "1")))
        info = dataclasses.replace(info, max_length=data.max_length)
        check_fit(self.stage, data, info)
        preflight.check([self.out, self.reports], scratch, model, self.optimizer, self.runtime)
        source, evaluate = self._sources(data)
        objective = PretrainModel(
            model,
            masked_logits_only=self.trainer.masked_logits_only_loss,
            accuracy=self.trainer.masked_accuracy,
        )

        def save(directory: Path, state: dict[str, Tensor]) -> None:
            save_model(directory, model_state(state), info, self.tokenizer)

        difference = self._gate(model, source)
        result = train(
            objective,
            source,
            trainer=self.trainer,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            runtime=self.runtime,
            seed=self.seed,
            scratch=scratch,
            stage=self.stage,
            evaluate=evaluate,
            save_model=save,
            low_precision=self.low_precision,
        )
        if is_main_process():
            save(self.out, result.state_dict)
            metrics = {**result.metrics, "packing_difference": difference}
            write_reports(self.reports, dataclasses.replace(result, metrics=metrics), self.stage)

    def _gate(self, model: MaskedLM, source: BatchSource) -> float:
        """Compare packed with unpacked on the first real batch, on the device and in the precision of the run."""
        set_determinism(self.trainer.deterministic)  # as `train` does: these are the run's first products
        device = local_device()
        first = move(source.micro_batches(0, size := self.trainer.per_device_train_batch_size, size, 0, 1)[0], device)
        batch = FlatBatch(first["input_ids"], first["position_ids"], first["cu_seqlens"], first["max_seqlen"])
        with torch.autocast(device.type, torch.bfloat16, enabled=self.trainer.mixed_precision == "bf16"):
            return packing_gate(model.to(device).encoder, batch)

    def _open(self, split: str) -> PackedDataset:
        return PackedDataset(self.packed / split, verified=runs_dir() / "verified")

    def _sources(self, data: PackedDataset) -> tuple[BatchSource, Evaluate | None]:
        """Training batches, and the evaluation that `dataset.*` asks for."""
        _, tokenizer = open_tokenizer(self.tokenizer)
        ids = [getattr(tokenizer, f"{role}_token_id") for role in ("pad", "unk", "cls", "sep", "mask")]
        table = MaskTable.of(tokenizer.mask_token_id, ids, tokenizer.vocab_size)
        held_out, first_row = self._held_out(data)
        check_size(self.stage, data, data.rows - first_row, self.trainer.global_batch_size)
        source: MlmSource | UnpackedSource
        if self.collator.pack_sequences:
            source = MlmSource(data, self.collator, table, self.seed, first_row, self._weighted(data, first_row))
        else:
            source = UnpackedSource(data, self.collator, table, self.seed, tokenizer.pad_token_id, first_row)
        if held_out is None:
            return source, None
        size, most = self.trainer.per_device_train_batch_size, self.trainer.eval_max_batches
        limits = [first_row or held_out.rows, self.dataset.eval_samples, most and most * size]
        rows = spread(first_row or held_out.rows, min(limit for limit in limits if limit))
        log.info(
            "%s: %d rows of %d tokens, evaluated on %d", self.stage, data.rows - first_row, data.max_length, len(rows)
        )
        evaluated = MlmSource(held_out, held_out_collator(self.collator), table, self.seed)
        return source, evaluator(evaluated, groups_of(rows, held_out.sources), size)

    def _weighted(self, data: PackedDataset, first_row: int) -> WeightedOrder | None:
        """The order that `dataset.sampling_probs` asks for, if any; the log says how often each source is read."""
        if self.dataset.sampling_probs is None:
            return None
        if not self.collator.pack_sequences:
            raise PipelineError("dataset.sampling_probs draws packed rows; it needs datacollator.pack_sequences: true")
        kept = {
            name: [(max(first, first_row), stop) for first, stop in ranges if stop > first_row]
            for name, ranges in data.sources.items()
        }
        order = WeightedOrder(kept, data.manifest["sources"], self.dataset.sampling_probs, self.seed)
        samples = self.trainer.max_steps * self.trainer.global_batch_size
        log.info("%s: %d samples are these epochs of each source: %s", self.stage, samples, order.epochs(samples))
        return order

    def _held_out(self, data: PackedDataset) -> tuple[PackedDataset | None, int]:
        """(rows to evaluate on or None, how many first rows of train they take away)."""
        name = self.dataset.eval_split
        if name is not None and not (self.packed / name).is_dir():
            have = ", ".join(sorted(p.name for p in self.packed.iterdir() if p.is_dir()))
            raise PipelineError(f"dataset.eval_split: {name!r} is not a split of {self.packed}, which has {have}")
        found = [split for split in EVAL_SPLITS if (self.packed / split).is_dir() and self._open(split).rows]
        if name or found:
            held_out = self._open(name or found[0])
            if not held_out.rows:
                log.warning("%s: %s holds no rows, so nothing is evaluated", self.stage, held_out.directory)
            return held_out if held_out.rows else None, 0
        samples = self.dataset.eval_samples
        if samples is None:
            log.info("%s: no split to evaluate on (dataset.eval_samples would hold rows of train out)", self.stage)
            return None, 0
        if samples >= data.rows:
            raise PipelineError(
                f"dataset.eval_samples: {samples} leaves nothing of {data.rows} rows to train on; set fewer"
            )
        return data, samples


def held_out_collator(collator: DataCollatorConfig) -> DataCollatorConfig:
    """How held-out rows are masked: alike for all ablations, packed with boundaries and every predicted token masked.

    A model trained with `mask_all` has never seen 80/10/10's random and kept tokens, while one trained on those has
    seen masks at four of five predictions: masks are what both know.
    """
    return dataclasses.replace(collator, pack_sequences=True, join_segments=False, mask_all=True)


def new_model(config: ModelConfig, tokenizer: Path, seed: int) -> tuple[MaskedLM, ModelInfo]:
    """A model with random weights for a tokenizer, and its description (max_length is set by the data)."""
    _, tok = open_tokenizer(tokenizer)
    vocab_size = config.padded_vocab_size(tok.vocab_size)
    if vocab_size < tok.vocab_size:
        raise PipelineError(
            f"model.vocab_size: {vocab_size} is less than the tokenizer's {tok.vocab_size} ids; "
            "set it to null, or at least to that"
        )
    ids = {f"{role}_token_id": getattr(tok, f"{role}_token_id") for role in ("pad", "cls", "sep", "mask", "unk")}
    torch.manual_seed(seed)
    model = MaskedLM(config, vocab_size, tok.pad_token_id)
    info = ModelInfo(
        model=config,
        vocab_size=vocab_size,
        max_length=config.max_position_embeddings,
        tokenizer_sha256=tok.sha256,
        **ids,
    )
    return model, info


def check_size(stage: str, data: PackedDataset, rows: int, batch: int) -> None:
    """Refuse data of less than one batch, which would train on copies of itself.

    Raises:
        PipelineError: there are fewer rows than `trainer.global_batch_size`.
    """
    if rows < batch:
        raise PipelineError(
            f"{stage}: {data.directory} has {rows} row(s) to train on, fewer than trainer.global_batch_size ({batch}); "
            "add text, or lower it"
        )


def check_fit(stage: str, data: PackedDataset, info: ModelInfo) -> None:
    """Refuse rows that this model cannot be trained on.

    Raises:
        PipelineError: another tokenizer, ids beyond the vocabulary, or rows longer than the model's positions.
    """
    if data.manifest["tokenizer"]["sha256"] != info.tokenizer_sha256:
        raise PipelineError(
            f"{stage}: rows in {data.directory} were made with another tokenizer than the model's; "
            "run `dvc repro` to make them anew"
        )
    if data.vocab_size > info.vocab_size:
        raise PipelineError(
            f"model.vocab_size: {info.vocab_size} is less than the {data.vocab_size} ids of {data.directory}"
        )
    if data.max_length > info.model.max_position_embeddings:
        raise PipelineError(
            f"model.max_position_embeddings: {info.model.max_position_embeddings} is less than "
            f"{stage}'s rows of {data.max_length} tokens (packing.max_length); raise one or lower the other"
        )


def model_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A `MaskedLM`'s state out of a `PretrainModel`'s."""
    return {key.removeprefix("model."): value for key, value in state.items()}
