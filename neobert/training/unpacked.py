"""Masked-language-model batches of single documents, without packing and without computing padding (an ablation).

A sample is one segment of the packed shards: the same documents as packed training reads, but a batch is so many
of them. They lie end to end in one flat stream as everywhere; only the stream's end is padded, to a multiple of
1024 tokens, and the list of predictions to a multiple of 256, so that a compiled step sees few shapes. Cost: one
look at each row at the start (2 us).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from neobert.config.datacollator import DataCollatorConfig
from neobert.model.batch import flatten
from neobert.packing.order import row_order
from neobert.training.masking import IGNORED, MaskTable, mask_rows
from neobert.training.source import Batch

TOKENS, PREDICTIONS = 1024, 256


class SegmentedRows(Protocol):
    """What is asked of packed rows (`neobert.packing.shards.PackedDataset` is one)."""

    rows: int
    max_length: int

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids [L], segment lengths)."""
        ...


class UnpackedSource:
    """Batches of documents, pure in samples_seen; arguments as `neobert.training.mlm.MlmSource`."""

    def __init__(
        self,
        data: SegmentedRows,
        collator: DataCollatorConfig,
        table: MaskTable,
        seed: int,
        pad_token_id: int,
        first_row: int = 0,
    ) -> None:
        self.data, self.collator, self.table, self.seed, self.pad = data, collator, table, seed, pad_token_id
        counts = [len(data.row(row)[1]) for row in range(first_row, data.rows)]
        self._first_row = first_row
        self._ends = np.cumsum(counts, dtype=np.int64)
        self.samples_per_epoch = int(self._ends[-1])

    def document(self, sample: int) -> np.ndarray:
        """Token ids of a sample, CLS and SEP included."""
        row = int(np.searchsorted(self._ends, sample, side="right"))
        ids, lengths = self.data.row(self._first_row + row)
        index = sample - int(self._ends[row - 1] if row else 0)
        start = int(lengths[:index].sum())
        return ids[start : start + int(lengths[index])]

    def micro_batches(
        self, samples_seen: int, global_batch_size: int, micro_batch_size: int, rank: int, world: int
    ) -> list[Batch]:
        """See `BatchSource`."""
        samples, epochs = row_order(samples_seen, global_batch_size, self.samples_per_epoch, self.seed)
        starts = range(rank * micro_batch_size, global_batch_size, micro_batch_size * world)
        return [self.batch(samples[s : s + micro_batch_size], epochs[s : s + micro_batch_size]) for s in starts]

    def batch(self, samples: np.ndarray, epochs: np.ndarray) -> Batch:
        """The masked micro-batch of these documents."""
        documents = [self.document(int(sample)) for sample in samples]
        lengths = np.array([len(document) for document in documents], np.int64)
        square = np.full((len(documents), int(lengths.max())), self.pad, np.int32)  # padding is special: never drawn
        for line, document in zip(square, documents, strict=True):
            line[: len(document)] = document
        masked = mask_rows(
            square,
            epochs,
            samples,
            seed=self.seed,
            mlm_probability=self.collator.mlm_probability,
            mask_all=self.collator.mask_all,
            table=self.table,
        )
        flat = flatten([row[:n] for row, n in zip(masked.input_ids, lengths, strict=True)], self.pad, TOKENS)
        chosen = np.nonzero(masked.labels != IGNORED)
        starts = np.cumsum(lengths) - lengths
        positions = starts[chosen[0]] + masked.columns[chosen]
        spare = -len(positions) % PREDICTIONS
        return {
            "input_ids": flat.input_ids,
            "position_ids": flat.position_ids,
            "cu_seqlens": flat.cu_seqlens,
            "max_seqlen": max(self.data.max_length, TOKENS),
            "masked_positions": torch.from_numpy(np.pad(positions, (0, spare))),
            "labels": torch.from_numpy(np.pad(masked.labels[chosen], (0, spare), constant_values=IGNORED)),
            "count": len(positions),
            "tokens": int(lengths.sum()),
            "squared_lengths": int(np.square(lengths).sum()),
        }
