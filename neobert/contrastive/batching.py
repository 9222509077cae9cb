"""Batches of one source, as a pure function of ``samples_seen``: no text twice, or several pairs of each class.

Algorithm: an epoch of E = rows / global batch steps gives each group (source and kind) a number of steps in proportion
to its rows ** alpha, by systematic sampling with a seeded offset, and shuffles them; so the batches that a group has
used before any epoch are a sum of a few small integers. A group's own pass over its rows is a seeded permutation cut
into batches greedily: a row that shares a text (query, positive or negative) with the batch waits for the next one.
A frequent text, which is in more rows than half of the pass has batches, would leave a pass nothing else for its end:
its rows are dealt evenly over the pass, at most one a batch (which ones, the permutation says; the others wait for
another pass), and where too few rows are left for full batches, all batches are equally short.
For a loss over classes the permutation is by turns: each class gives two of its rows, in an order drawn anew for every
round, until only one class has rows left (they wait for another pass); then odd rows come. That is
sentence-transformers' ``GROUP_BY_LABEL``, which drops odd rows; here one row is two texts of its class already.
Cost: a permutation is made when a group's pass begins (0.1 ms a batch, and 1 s a million pairs of a group with frequent
texts); then a lookup a step. The rows of a step depend on neither rank nor world.
"""

import logging
import threading
from collections import OrderedDict

import numpy as np

from neobert.contrastive.pairs import Pairs
from neobert.errors import PipelineError

log = logging.getLogger(__name__)
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
        by_class: bring rows of a class together, those of one query too (a loss over classes wants it).

    Raises:
        PipelineError: ``by_class`` where all rows of a group are of one class.
    """

    def __init__(
        self,
        pairs: Pairs,
        batch_size: int,
        batch_sizes: dict[str, int],
        alpha: float,
        seed: int,
        by_class: bool = False,
    ) -> None:
        self.pairs, self.seed, self.by_class = pairs, seed, by_class
        counts = np.bincount(pairs.groups, minlength=len(pairs.names))
        if by_class:  # how many rows come in turns does not depend on the draws
            counts = np.array([len(self._rows(group, turn=0)) if count else 0 for group, count in enumerate(counts)])
        self.present = np.flatnonzero(counts)
        self.sizes = np.array(
            [min(batch_sizes.get(pairs.sources[g], batch_size), counts[g]) for g in range(len(counts))]
        )
        weights = counts[self.present].astype(np.float64) ** alpha
        self.cumulative = np.cumsum(weights / weights.sum())
        self.steps_per_epoch = max(1, round(pairs.rows / batch_size))
        self.batches_per_pass = counts // np.maximum(self.sizes, 1)
        self._used = [np.zeros(len(self.present), dtype=np.int64)]
        self._lock = threading.Lock()  # batches may be made by several threads
        self._passes: OrderedDict[tuple[int, int], list[np.ndarray]] = OrderedDict()
        self._frequent: dict[int, np.ndarray] = {}

    def _rows(self, group: int, turn: int) -> np.ndarray:
        """The rows of a group in the order of its pass number ``turn``."""
        rows = np.flatnonzero(self.pairs.groups == group)
        random = _generator(self.seed, 3, group, turn)
        rows = random.permutation(rows)
        return rows[self._by_turns(group, self.pairs.classes[rows], random)] if self.by_class else rows

    def _by_turns(self, group: int, classes: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Indices of rows of ``classes`` in the order in which the classes take turns."""
        _, number, sizes = np.unique(classes, return_inverse=True, return_counts=True)
        if len(sizes) < 2:
            raise PipelineError(
                f"contrastive.loss: supcon tells classes apart, but all pairs of {self.pairs.names[group]!r} have one "
                "label; correct contrastive_data.sources, or remove that source"
            )
        order = np.argsort(number, kind="stable")
        within = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        alone = within == np.repeat(sizes - sizes % 2, sizes)
        rounds = np.where(alone, len(order) - 1, within // 2)  # last, so that they do not come between the twos
        # One draw for each class and round: the rows of a turn share it, so they stay together.
        _, turns = np.unique(number[order] * len(order) + rounds, return_inverse=True)
        drawn = random.random(int(turns.max()) + 1)[turns]
        by_round = np.lexsort((drawn, rounds))
        last = max(np.sort(sizes)[-2] // 2, 1)  # from here on one class would be left
        return order[by_round][(alone | (rounds < last))[by_round]]

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
        rows, count = self._rows(group, turn), int(self.batches_per_pass[group])
        first = group not in self._frequent
        if first:
            self._frequent[group] = self._frequent_texts(group)
        if len(self._frequent[group]):
            rows = self._deal(rows, group, turn)
        total = min(len(rows), count * int(self.sizes[group]))
        batches = self._cut(rows, [total * (i + 1) // count - total * i // count for i in range(count)])
        alone = sum(len(batch) < 2 for batch in batches)
        if first and alone:
            log.warning(
                "%d of %d batches of source %s hold fewer than 2 pairs, so they have no in-batch negatives: too many "
                "of its pairs share a text, which a batch holds once; make its texts differ, or remove it from "
                "contrastive_data.sources",
                alone, count, self.pairs.names[group],
            )  # fmt: skip
        return batches

    def _frequent_texts(self, group: int) -> np.ndarray:
        """Sorted identities of the texts that more rows share than half of a pass has batches."""
        limit = max(int(self.batches_per_pass[group]) / 2, 1)
        # By a text's first 16 bits: few share a frequent text's, so little is held.
        bits = np.zeros(1 << 16, dtype=np.int64)
        for _, texts in self.pairs.texts_of(group, int(self.by_class)):
            bits += np.bincount((texts >> 48).astype(np.int64), minlength=len(bits))
        found = [texts[bits[texts >> 48] > limit] for _, texts in self.pairs.texts_of(group, int(self.by_class))]
        values, counts = np.unique(np.concatenate(found), return_counts=True)
        return values[counts > limit]

    def _deal(self, rows: np.ndarray, group: int, turn: int) -> np.ndarray:
        """``rows`` with those of each frequent text spread evenly, and no more of them than the pass has batches."""
        place = np.full(self.pairs.rows, -1)
        place[rows] = np.arange(len(rows))
        frequent, keys = self._frequent[group], []
        for owner, texts in self.pairs.texts_of(group, int(self.by_class)):
            number = np.searchsorted(frequent, texts).clip(max=len(frequent) - 1)
            hit = (frequent[number] == texts) & (place[owner] >= 0)
            keys.append(number[hit] * len(rows) + place[owner[hit]])
        number, places = np.divmod(np.unique(np.concatenate(keys)), len(rows))
        of_text = sorted(np.split(places, np.flatnonzero(np.diff(number)) + 1), key=len, reverse=True)
        kept = np.ones(len(rows), dtype=bool)
        for found in of_text:
            kept[found[kept[found]][int(self.batches_per_pass[group]) :]] = False
        free = kept.copy()
        free[places] = False
        position = np.empty(len(rows))
        position[free] = (np.arange(free.sum()) + 0.5) / max(free.sum(), 1)
        # Away from 0 and 1, where two neighbours of a text could meet in the batch between them.
        offsets = _generator(self.seed, 4, group, turn).uniform(0.25, 0.75, len(of_text))
        for found, offset in zip(of_text[::-1], offsets, strict=True):  # a row's most frequent text has the last word
            left = found[kept[found]]
            position[left] = (np.arange(len(left)) + offset) / max(len(left), 1)
        chosen = np.flatnonzero(kept)
        return rows[chosen[np.argsort(position[chosen], kind="stable")]]

    def _cut(self, rows: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
        """Batches of ``sizes`` rows, in order; one that shares a text with its batch waits for the next."""
        batches, waiting, position = [], rows[:0], 0
        for size in sizes:
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
        hashes = [self.pairs.hashes(row)[int(self.by_class) :] for row in rows.tolist()]  # a query may repeat
        owner = np.repeat(np.arange(len(rows)), [len(h) for h in hashes])
        _, first, inverse = np.unique(np.concatenate(hashes), return_index=True, return_inverse=True)
        shared = owner[first[inverse]] != owner
        return np.bincount(owner, weights=shared, minlength=len(rows)) == 0
