"""One flat token stream: every sequence of a batch laid end to end, no padding inside it.

Shapes: T tokens, S segments. Cost: one copy of the ids on the host.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class FlatBatch(NamedTuple):
    """Sequences laid end to end.

    Attributes:
        input_ids: [T] int64.
        position_ids: [T] int64, restarting at 0 with each segment.
        cu_seqlens: [S+1] int32, where each segment starts; the last entry is T.
        max_seqlen: at least the longest segment, a host integer.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "FlatBatch":
        """The same batch on ``device``."""
        return FlatBatch(
            self.input_ids.to(device, non_blocking=non_blocking),
            self.position_ids.to(device, non_blocking=non_blocking),
            self.cu_seqlens.to(device, non_blocking=non_blocking),
            self.max_seqlen,
        )

    def pin_memory(self) -> "FlatBatch":
        """The same batch in page-locked memory, so that a copy to a GPU can overlap with its work."""
        return FlatBatch(
            self.input_ids.pin_memory(), self.position_ids.pin_memory(), self.cu_seqlens.pin_memory(), self.max_seqlen
        )


def flatten(sequences: Sequence[np.ndarray], pad_token_id: int, multiple: int = 1) -> FlatBatch:
    """Lay ``sequences`` (each a 1-D array of token ids) end to end.

    T is rounded up to a multiple of ``multiple`` by one dummy segment of ``pad_token_id`` at the end, so that a step
    sees few different shapes; the real segments are always the first ``len(sequences)``.

    Raises:
        ValueError: no sequence at all, or ``multiple`` below 1.
    """
    if not len(sequences):
        raise ValueError("flatten needs at least one sequence")
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, not {multiple}")
    lengths = [len(sequence) for sequence in sequences]
    total = sum(lengths)
    padding = max(1, -(-total // multiple)) * multiple - total if multiple > 1 or total == 0 else 0
    if padding:
        lengths.append(padding)
    ids = np.full(total + padding, pad_token_id, dtype=np.int64)
    np.concatenate([np.asarray(s) for s in sequences], out=ids[:total], casting="unsafe")
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    positions = np.arange(len(ids), dtype=np.int64) - np.repeat(starts[:-1], lengths)
    return FlatBatch(
        torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(starts.astype(np.int32)), max(lengths)
    )
