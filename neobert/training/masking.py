"""Which tokens are predicted, and what the model sees in their place.

Each row predicts exactly round(p x its maskable tokens): those with the smallest splitmix64 hash of
(seed, epoch, row, column). A counter-based draw has no state, so masks do not depend on workers, ranks, batch
sizes or resuming, and an exact count keeps every shape static (BERT's independent coin per token would not).
Cost: one hash a token, one argpartition a row, about 1.5 ms for 64 rows of 1024 on one core.
Source: splitmix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014); the 80/10/10
corruption, Devlin et al. (2019); masking all of them, NeoBERT, Le Breton et al. (2025).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

IGNORED = -100
_U64 = np.uint64
_ALL_ONES = _U64(0xFFFFFFFFFFFFFFFF)
_STEP = (0x9E3779B97F4A7C15, 0xD1342543DE82EF95)


def splitmix64(z: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: a bijection of uint64 whose output bits look independent."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> _U64(27))) * _U64(0x94D049BB133111EB)
        return z ^ (z >> _U64(31))


def draws(seed: int, epochs: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    """uint64 [R, length] hashes of (seed, epoch, row, column); epochs and rows are [R]."""
    with np.errstate(over="ignore"):
        key = splitmix64(np.full(len(rows), seed & 0xFFFFFFFFFFFFFFFF, _U64) + _U64(_STEP[0]))
        key = splitmix64(key + (epochs.astype(_U64) + _U64(1)) * _U64(_STEP[0]))
        key = splitmix64(key + (rows.astype(_U64) + _U64(1)) * _U64(_STEP[1]))
        columns = np.arange(1, length + 1, dtype=_U64) * _U64(_STEP[0])
        return splitmix64(key[:, None] + columns)


class MaskedRows(NamedTuple):
    """Rows as the model sees them, and what it must predict.

    input_ids[R, L] int32; columns[R, m] int64, ascending, of the predicted tokens; labels[R, m] int64. Rows with
    fewer than m predicted tokens fill up with column 0 and label -100, which the loss ignores.
    """

    input_ids: np.ndarray
    columns: np.ndarray
    labels: np.ndarray


class MaskTable(NamedTuple):
    """What masking must know of the tokenizer: the mask's id and bool[vocabulary], true for special ids."""

    mask_id: int
    special: np.ndarray

    @classmethod
    def of(cls, mask_id: int, special_ids: list[int], vocab_size: int) -> MaskTable:
        """`vocab_size` is the tokenizer's own: random replacements are drawn from its ordinary tokens."""
        special = np.zeros(vocab_size, bool)
        special[sorted(set(special_ids) | {mask_id})] = True
        return cls(mask_id, special)


def mask_rows(
    input_ids: np.ndarray,
    epochs: np.ndarray,
    rows: np.ndarray,
    *,
    seed: int,
    mlm_probability: float,
    mask_all: bool,
    table: MaskTable,
) -> MaskedRows:
    """Choose and corrupt the predicted tokens of `input_ids` [R, L]; epochs and rows [R] name each row's draw.

    Special tokens are never chosen. With `mask_all` every chosen token becomes the mask; otherwise 80% do, 10%
    become a random ordinary token and 10% stay.
    """
    count, length = input_ids.shape
    width = int(np.rint(mlm_probability * length))
    maskable = ~table.special[input_ids]
    hashes = np.where(maskable, draws(seed, epochs, rows, length), _ALL_ONES)
    wanted = np.rint(mlm_probability * maskable.sum(axis=1)).astype(np.int64)
    columns = _smallest(hashes, wanted, width)
    chosen = np.arange(width) < wanted[:, None]

    lines = np.arange(count)[:, None]
    originals = input_ids[lines, columns]
    labels = np.where(chosen, originals, IGNORED).astype(np.int64)
    replaced = np.full_like(originals, table.mask_id)
    if not mask_all:
        # A second hash of the same draw: independent of the first, which was conditioned on being small.
        with np.errstate(over="ignore"):
            second = splitmix64(draws(seed, epochs, rows, length)[lines, columns] + _U64(_STEP[1]))
        replaced = _corrupt(originals, second, table)
    out = input_ids.astype(np.int32, copy=True)
    # Filled-up entries all name column 0, so only chosen ones may write.
    where = np.nonzero(chosen)
    out[where[0], columns[where]] = replaced[where]
    return MaskedRows(out, columns, labels)


def _smallest(hashes: np.ndarray, wanted: np.ndarray, width: int) -> np.ndarray:
    """int64 [R, width]: the columns of each row's `wanted` smallest hashes, ascending, then zeros."""
    if width == 0:
        return np.zeros((len(hashes), 0), np.int64)
    length = hashes.shape[1]
    candidates = np.argpartition(hashes, width - 1, axis=1)[:, :width]
    if (wanted < width).any():
        order = np.argsort(np.take_along_axis(hashes, candidates, axis=1), axis=1)
        candidates = np.take_along_axis(candidates, order, axis=1)
        candidates = np.where(np.arange(width) < wanted[:, None], candidates, length)
    candidates = np.sort(candidates, axis=1)
    return np.where(candidates < length, candidates, 0).astype(np.int64)


def _corrupt(originals: np.ndarray, draw: np.ndarray, table: MaskTable) -> np.ndarray:
    """80% mask, 10% a random ordinary token, 10% unchanged; `draw` is one uint64 per token."""
    ordinary = np.nonzero(~table.special)[0].astype(originals.dtype)
    tenths = (draw >> _U64(32)) * _U64(10) >> _U64(32)
    picks = ((draw & _U64(0xFFFFFFFF)) * _U64(len(ordinary))) >> _U64(32)
    random = ordinary[picks.astype(np.int64)]
    return np.where(tenths < 8, np.asarray(table.mask_id, originals.dtype), np.where(tenths == 8, random, originals))
