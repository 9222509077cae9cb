"""Pairs as batches for the training loop: queries, positives and negatives of a step in one padding-free stream.

With ``mini_batch_size`` the stream is cut into chunks of so many texts, each text going to the chunks in turn by
falling length, so that chunks have nearly equal tokens. Cost: two copies of the batch's tokens on the host.
"""

from typing import Any

import numpy as np
import torch

from neobert.contrastive.batching import Schedule
from neobert.contrastive.pairs import Pairs, Texts
from neobert.contrastive.simcse import PretrainingTexts
from neobert.errors import PipelineError
from neobert.model.batch import flatten
from neobert.training.source import Batch

MULTIPLE = 1024
"""A GPU's stream is padded to a multiple of this, so that kernels and the memory allocator see few different sizes."""


def chunks_of(texts: int, mini_batch_size: int | None) -> int:
    """How many chunks hold ``texts`` texts, at most ``mini_batch_size`` each."""
    return 1 if mini_batch_size is None else max(1, -(-texts // mini_batch_size))


def collate(texts: list[np.ndarray], pad_token_id: int, chunks: int, multiple: int) -> dict[str, Any]:
    """Texts as ``chunks`` chunks of a flat stream, each text going to them in turn by falling length.

    Returns:
        input_ids [T], position_ids [T] int64; cu_seqlens [S + 1] int32 over the whole stream; chunks: host tuples
        (first token, last, first segment, last, texts, longest); order [texts] int64: where in the chunks' embeddings
        each text's stands.
    """
    lengths = np.array([len(text) for text in texts])
    by_length = np.argsort(-lengths, kind="stable") if chunks > 1 else np.arange(len(texts))
    members = [by_length[i::chunks] for i in range(chunks)]
    # A rank may be left without a pair; it still takes part in every collective call.
    nothing = [np.empty(0, dtype=np.int32)]
    parts = [flatten([texts[i] for i in chunk] or nothing, pad_token_id, multiple) for chunk in members]
    bounds, starts, token, segment = [], [parts[0].cu_seqlens[:1]], 0, 0
    for chunk, part in zip(members, parts, strict=True):
        tokens, segments = len(part.input_ids), len(part.cu_seqlens) - 1
        # A compiled encoder would be compiled anew for each other longest segment, so a bound stands for it.
        longest = part.max_seqlen if multiple == 1 else -(-part.max_seqlen // multiple) * multiple
        bounds.append((token, token + tokens, segment, segment + segments, len(chunk), longest))
        starts.append(part.cu_seqlens[1:] + token)
        token, segment = token + tokens, segment + segments
    order = np.empty(len(texts), dtype=np.int64)
    order[np.concatenate(members)] = np.arange(len(texts))
    return {
        "input_ids": torch.cat([part.input_ids for part in parts]),
        "position_ids": torch.cat([part.position_ids for part in parts]),
        "cu_seqlens": torch.cat(starts),
        "chunks": tuple(bounds),
        "order": torch.from_numpy(order),
    }


def collate_pairs(texts: Texts, *, labels: np.ndarray, pad_token_id: int, chunks: int = 1, multiple: int = 1) -> Batch:
    """One batch of these pairs, on one rank; ``labels`` [pairs] int64 say which are of one class."""
    negatives = [text for found in texts.negatives for text in found]
    every = [*texts.queries, *texts.positives, *negatives]
    lengths = np.array([len(text) for text in every], dtype=np.int64)
    return collate(every, pad_token_id, chunks, multiple) | {
        "labels": torch.from_numpy(labels),
        "count": len(texts.queries),
        "tokens": int(lengths.sum()),
        "squared_lengths": int(np.square(lengths).sum()),
        "pair_sizes": (len(texts.queries),),
        "negative_sizes": (len(negatives),),
        "rank": 0,
    }


class PairSource:
    """``BatchSource`` over pairs, and over pretraining text in the steps that ``simcse`` takes.

    Args:
        pairs: the training pairs.
        schedule: which rows a step takes.
        pad_token_id: fills the dummy segment.
        max_negatives: hard negatives used of each pair.
        mini_batch_size: texts of a chunk, or None for one chunk.
        gather: whether ranks will see each other's texts as negatives.
        multiple: the stream's length is padded to a multiple of it.
        simcse: pretraining text that takes some of the steps.
    """

    def __init__(
        self,
        pairs: Pairs,
        schedule: Schedule,
        *,
        pad_token_id: int,
        max_negatives: int,
        mini_batch_size: int | None = None,
        gather: bool = True,
        multiple: int = 1,
        simcse: PretrainingTexts | None = None,
    ) -> None:
        self.pairs, self.schedule, self.simcse = pairs, schedule, simcse
        self.max_negatives, self.gather = max_negatives, gather
        self.pad_token_id, self.mini_batch_size, self.multiple = pad_token_id, mini_batch_size, multiple
        self.samples_per_epoch = pairs.rows
        self.negatives = np.minimum(pairs.negative_counts(), max_negatives)

    def micro_batches(
        self, samples_seen: int, global_batch_size: int, micro_batch_size: int, rank: int, world: int
    ) -> list[Batch]:
        """This rank's part of the step's batch, always one micro-batch: pairs of a step are each other's negatives.

        Raises:
            PipelineError: the loop was told to accumulate.
        """
        if micro_batch_size * world != global_batch_size:
            raise PipelineError(
                f"contrastive.trainer.global_batch_size ({global_batch_size}) must be a multiple of the "
                f"number of ranks ({world})"
            )
        step = samples_seen // global_batch_size
        if self.simcse is not None and self.simcse.takes(step):
            rows = self.simcse.batch(step, global_batch_size)
            labels, negatives, take = rows.astype(np.int64), np.zeros(len(rows), np.int64), self.simcse.take
        else:
            _, rows = self.schedule.batch(step)
            labels, negatives, take = self.pairs.classes[rows], self.negatives[rows], self._take
        shares = np.array_split(rows, world)
        alone = world == 1 or not self.gather
        if alone:
            labels = np.array_split(labels, world)[rank]
        pair_sizes = tuple(len(share) for share in shares)
        negative_sizes = tuple(int(share.sum()) for share in np.array_split(negatives, world))
        # As many chunks on every rank: a sharded encoder gathers its weights in each.
        most = max(2 * p + n for p, n in zip(pair_sizes, negative_sizes, strict=True))
        batch = collate_pairs(
            take(shares[rank]),
            labels=labels,
            pad_token_id=self.pad_token_id,
            chunks=chunks_of(most, self.mini_batch_size),
            multiple=self.multiple,
        )
        if not alone:
            batch["pair_sizes"], batch["negative_sizes"] = pair_sizes, negative_sizes
            batch["rank"] = rank
        return [batch]

    def _take(self, rows: np.ndarray) -> Texts:
        return self.pairs.take(rows, self.max_negatives)
