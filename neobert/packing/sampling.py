"""Which source each sample comes from, when sources are weighed by ``dataset.sampling_probs``.

Samples are numbered; every run of ``CYCLE`` samples holds each source exactly as often as its probability says (what
rounding leaves over is carried into the next), in an order permuted by seed. So the share is kept in every few
batches, not only on average, and the source and the number of a sample within its source are pure functions of the
sample's number: a run resumes anywhere. Each source is then read in its own row order, over as many epochs as it takes.
"""

import logging
from collections.abc import Sequence

import numpy as np

from neobert.errors import PipelineError
from neobert.packing.order import hash_stream, permute, rows_at

log = logging.getLogger(__name__)
CYCLE = 8192
_UNIT = 1 << 40


class WeightedOrder:
    """Row order over several sources.

    Args:
        sources: by name, the row ranges (first, one past the last) that a source fills.
        probabilities: one a source, in the order of ``names``; they sum to 1.
        names: the order in which ``probabilities`` are given.
        seed: of the order.

    Raises:
        PipelineError: as many probabilities as sources are needed, none negative, with sum 1; a source without rows
            cannot be sampled.
    """

    def __init__(
        self, sources: dict[str, list[tuple[int, int]]], names: Sequence[str], probabilities: Sequence[float], seed: int
    ) -> None:
        check_probabilities(probabilities, names)
        self.names, self.seed = list(names), seed
        self.ranges = [np.array(sources.get(name, []), np.int64).reshape(-1, 2) for name in names]
        self.rows = [int((ranges[:, 1] - ranges[:, 0]).sum()) for ranges in self.ranges]
        for name, rows, probability in zip(names, self.rows, probabilities, strict=True):
            if probability and not rows:
                raise PipelineError(f"dataset.sampling_probs: source {name!r} has probability {probability} but no row")
        self._units = [round(p * _UNIT) for p in probabilities]
        self._largest = int(np.argmax(probabilities))

    def _taken(self, cycle: int) -> np.ndarray:
        """Samples of each source before ``cycle``, int64 [K]; exact, in Python integers."""
        taken = [cycle * CYCLE * unit // _UNIT for unit in self._units]
        taken[self._largest] = 0
        taken[self._largest] = cycle * CYCLE - sum(taken)
        return np.array(taken, np.int64)

    def __call__(self, samples_seen: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of samples ``samples_seen ..`` and the epoch of each within its source; both int64 [count]."""
        sample = np.arange(samples_seen, samples_seen + count, dtype=np.int64)
        cycle, inside = np.divmod(sample, CYCLE)
        slot = permute(inside, CYCLE, hash_stream(self.seed, 6, cycle))
        row, epoch = np.empty(count, np.int64), np.empty(count, np.int64)
        for number in np.unique(cycle).tolist():
            here = np.flatnonzero(cycle == number)
            before = self._taken(number)
            share = np.cumsum(self._taken(number + 1) - before)
            source = np.searchsorted(share, slot[here], side="right")
            for k in np.unique(source).tolist():
                mine = here[source == k]
                position = before[k] + slot[mine] - (share[k - 1] if k else 0)
                local, epoch[mine] = rows_at(position, self.rows[k], self._seed(k))
                row[mine] = self._global(k, local)
        return row, epoch

    def _seed(self, k: int) -> int:
        return int(hash_stream(self.seed, 7, k)[0]) >> 1

    def _global(self, k: int, local: np.ndarray) -> np.ndarray:
        """Rows of the data set from rows of source ``k``, whose ranges lie one after the other."""
        first, stop = self.ranges[k].T
        ends = np.cumsum(stop - first)
        part = np.searchsorted(ends, local, side="right")
        return first[part] + local - (ends - (stop - first))[part]

    def epochs(self, samples: int) -> dict[str, float]:
        """How often each source has been gone through after ``samples`` samples (to within a cycle)."""
        taken = self._taken(samples // CYCLE) + np.array(self._units) / _UNIT * (samples % CYCLE)
        return {
            name: round(float(number) / rows, 4) if rows else 0.0
            for name, number, rows in zip(self.names, taken, self.rows, strict=True)
        }


def check_probabilities(probabilities: Sequence[float], names: Sequence[str]) -> None:
    """Raise unless ``probabilities`` are a distribution over ``names``."""
    if len(probabilities) != len(names):
        raise PipelineError(
            f"dataset.sampling_probs: {len(probabilities)} probabilities for {len(names)} sources "
            f"({', '.join(names)}); give one for each entry of corpus.files or corpus.hub"
        )
    if min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-6:
        raise PipelineError(f"dataset.sampling_probs: {list(probabilities)} must be positive or 0 and sum to 1")
