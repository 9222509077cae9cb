"""The order in which rows are read: seeded, pure in the number of samples seen, and with no state to keep.

Rows are taken in blocks of ``BLOCK``; blocks are permuted over the data set, then rows within a window of
``WINDOW`` blocks, so that files are read in runs long enough for a shared file system. Each epoch also starts the
blocks at another row. Permutations are Feistel networks over a power of four, walked until they land inside (a few
steps on average): O(1) memory and time a row, whatever the size. About 3 million rows a second.
"""

import numpy as np

BLOCK = 128
WINDOW = 64
ROUNDS = 6
_U = np.uint64
_GOLDEN = _U(0x9E3779B97F4A7C15)
_ROUND_CONSTANTS = np.arange(1, ROUNDS + 1, dtype=_U) * _GOLDEN


def mix(value: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer on uint64: a bijection whose output bits all depend on all input bits."""
    value = (value ^ (value >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> _U(27))) * _U(0x94D049BB133111EB)
    return value ^ (value >> _U(31))


def hash_stream(*words: int | np.ndarray) -> np.ndarray:
    """Hash a tuple of integers (arrays broadcast) to uint64; the order of the words matters."""
    state = np.zeros(1, _U)
    for word in words:
        state = mix((state + np.asarray(word).astype(_U) + _U(1)) * _GOLDEN)
    return state


def permute(index: np.ndarray, size: int | np.ndarray, key: np.ndarray) -> np.ndarray:
    """Apply the permutation of ``range(size)`` that ``key`` chooses.

    Args:
        index: int64 [N], each less than its ``size``.
        size: of the permuted range; [N] or one for all.
        key: uint64 [N] or [1].
    """
    value = index.astype(_U)
    size = np.broadcast_to(np.asarray(size).astype(_U), value.shape)
    key = np.broadcast_to(key, value.shape)
    # Half the bits of the smallest power of four that holds the range.
    half = np.ceil(np.log2(np.maximum(size, _U(2)).astype(np.float64)) / 2).astype(_U)
    pending = np.arange(len(value))
    while len(pending):
        value[pending] = _feistel(value[pending], half[pending], key[pending])
        pending = pending[value[pending] >= size[pending]]
    return value.astype(np.int64)


def _feistel(value: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (_U(1) << half) - _U(1)
    left, right = value >> half, value & mask
    for constant in _ROUND_CONSTANTS:
        left, right = right, left ^ (mix(right + mix(key + constant)) & mask)
    return (left << half) | right


def row_order(samples_seen: int, count: int, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` rows that follow after ``samples_seen`` samples, and the epoch of each; both int64 [count].

    Every epoch visits each of ``rows`` rows once; the batch may straddle epochs.
    """
    return rows_at(np.arange(samples_seen, samples_seen + count, dtype=np.int64), rows, seed)


def rows_at(position: np.ndarray, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows at any positions (int64 [N]) of the endless order, and their epochs; both int64 [N]."""
    epoch, position = np.divmod(position, rows)
    window_rows = BLOCK * WINDOW
    window = position // window_rows
    size = np.minimum(window_rows, rows - window * window_rows)
    slot = window * window_rows + permute(position - window * window_rows, size, hash_stream(seed, 1, epoch, window))
    whole = rows // BLOCK  # what is left over stays at the end of the epoch; the shift below makes it other rows
    block, inside = np.divmod(slot, BLOCK)
    moved = block < whole
    row = slot.copy()
    if whole:
        keys = np.broadcast_to(hash_stream(seed, 2, epoch), row.shape)
        row[moved] = permute(block[moved], whole, keys[moved]) * BLOCK + inside[moved]
    shift = (hash_stream(seed, 3, epoch) % _U(rows)).astype(np.int64)
    return (row + shift) % rows, epoch
