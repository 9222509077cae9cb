"""Batches of one source without repeated texts, as a pure function of ``samples_seen``.

Algorithm: an epoch of E = rows / global batch steps gives each group (source and kind) a number of steps in proportion
to its rows ** alpha, by systematic sampling with a seeded offset, and shuffles them; so the batches that a group has
used before any epoch are a sum of a few small integers. A group's own pass over its rows is a seeded permutation cut
into batches greedily: a row that shares a text (query, positive or negative) with the batch waits for the next one.
Cost: a permutation is made when a group's pass begins (0.1 ms a batch); then a lookup a step. The rows of a step
depend on neither rank nor world.
"""

import threading
from collections import OrderedDict

import numpy as np

from neobert.contrastive.pairs import Pairs

KEPT_PASSES = 8


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(key))


class Schedule:
    """Which rows form the batch of each step.

    Args:
        pairs: the training pairs.
        batch_size: pairs in a step.
        batch_sizes: smaller batches by source name.
        alpha: exponent of a group's size.
        seed: of every permutation.
        repeat_queries: let pairs of one query meet in a batch (a loss that knows them for positives wants it).
    """

    def __init__(
        self,
        pairs: Pairs,
        batch_size: int,
        batch_sizes: dict[str, int],
        alpha: float,
        seed: int,
        repeat_queries: bool = False,
    ) -> None:
        self.pairs, self.seed, self.first_text = pairs, seed, int(repeat_queries)
        counts = np.bincount(pairs.groups, minlength=len(pairs.names))
        self.present = np.flatnonzero(counts)
        self.sizes = np.array(
            [min(batch_sizes.get(pairs.names[g].split("/")[0], batch_size), counts[g]) for g in range(len(counts))]
        )
        weights = counts[self.present].astype(np.float64) ** alpha
        self.cumulative = np.cumsum(weights / weights.sum())
        self.steps_per_epoch = max(1, round(pairs.rows / batch_size))
        self.batches_per_pass = counts // np.maximum(self.sizes, 1)
        self._used = [np.zeros(len(self.present), dtype=np.int64)]
        self._lock = threading.Lock()  # batches may be made by several threads
        self._passes: OrderedDict[tuple[int, int], list[np.ndarray]] = OrderedDict()

    def _epoch_counts(self, epoch: int) -> np.ndarray:
        """Steps of each present group in an epoch; they sum to steps_per_epoch."""
        offset = _generator(self.seed, 1, epoch).random()
        bounds = np.floor(self.cumulative * self.steps_per_epoch + offset)
        bounds[-1] = self.steps_per_epoch  # whatever rounding the last sum has
        return np.diff(bounds, prepend=0).astype(np.int64)

    def batch(self, step: int) -> tuple[int, np.ndarray]:
        """(group, rows) of a step, counted from 0."""
        with self._lock:
            return self._batch(*divmod(step, self.steps_per_epoch))

    def _batch(self, epoch: int, within: int) -> tuple[int, np.ndarray]:
        while len(self._used) <= epoch:
            self._used.append(self._used[-1] + self._epoch_counts(len(self._used) - 1))
        order = np.repeat(np.arange(len(self.present)), self._epoch_counts(epoch))
        order = _generator(self.seed, 2, epoch).permutation(order)
        chosen = int(order[within])
        group = int(self.present[chosen])
        number = int(self._used[epoch][chosen] + (order[:within] == chosen).sum())
        return group, self._group_batch(group, number)

    def _group_batch(self, group: int, number: int) -> np.ndarray:
        turn, index = divmod(number, int(self.batches_per_pass[group]))
        if (group, turn) not in self._passes:
            self._passes[group, turn] = self._make_pass(group, turn)
            while len(self._passes) > max(KEPT_PASSES, 2 * len(self.present)):
                self._passes.popitem(last=False)
        return self._passes[group, turn][index]

    def _make_pass(self, group: int, turn: int) -> list[np.ndarray]:
        rows = np.flatnonzero(self.pairs.groups == group)
        rows = _generator(self.seed, 3, group, turn).permutation(rows)
        size, batches, waiting, position = int(self.sizes[group]), [], rows[:0], 0
        for _ in range(int(self.batches_per_pass[group])):
            batch = rows[:0]
            while True:
                fresh = rows[position : position + size - len(batch)]
                position += len(fresh)
                candidates = np.concatenate([batch, waiting, fresh])
                unique = self._without_repeats(candidates)
                batch, later = candidates[unique][:size], candidates[~unique]
                waiting = np.concatenate([candidates[unique][size:], later])
                if len(batch) == size or not len(fresh):
                    break
            batches.append(batch)
        return batches

    def _without_repeats(self, rows: np.ndarray) -> np.ndarray:
        """[n] bool: the row shares no text with an earlier one."""
        hashes = [self.pairs.hashes(row)[self.first_text :] for row in rows.tolist()]
        owner = np.repeat(np.arange(len(rows)), [len(h) for h in hashes])
        _, first, inverse = np.unique(np.concatenate(hashes), return_index=True, return_inverse=True)
        shared = owner[first[inverse]] != owner
        return np.bincount(owner, weights=shared, minlength=len(rows)) == 0
