"""One vector a segment from the hidden states of its tokens.

Sums run in fp32. With token weights the semantics are those of sentence-transformers' ``WordWeights`` followed by its
``Pooling``: hidden states are multiplied by their token's weight, and a mean divides by the sum of weights. Cost: one
read of [T, H].
"""

import torch

MODES = ("mean", "cls", "max")


def pool(
    hidden: torch.Tensor,
    cu_seqlens: torch.Tensor,
    num_segments: int,
    mode: str,
    token_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pool hidden states [T, H] of the first ``num_segments`` segments into [num_segments, H] fp32.

    Segments past ``num_segments`` (the dummy one that rounds T up) are left out, and a segment without tokens gives
    zeros.

    Args:
        hidden: [T, H].
        cu_seqlens: [S+1] int32 with S >= num_segments and ``cu_seqlens[S] == T``.
        num_segments: how many segments to pool, a host integer.
        mode: ``mean``, ``cls`` (the first token) or ``max``.
        token_weights: [T], positive, or None.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"pooling {mode!r} is not one of {', '.join(MODES)}")
    hidden = hidden.float()
    starts, ends = cu_seqlens[:num_segments].long(), cu_seqlens[1 : num_segments + 1].long()
    empty = (starts == ends)[:, None]
    if mode == "cls":
        first = starts.clamp(max=hidden.shape[0] - 1)
        pooled = hidden[first] if token_weights is None else hidden[first] * token_weights[first].float()[:, None]
        return pooled.masked_fill(empty, 0.0)
    if token_weights is not None:
        token_weights = token_weights.float()
        hidden = hidden * token_weights[:, None]
    tokens = torch.arange(hidden.shape[0], device=hidden.device)
    segment = torch.searchsorted(ends, tokens, right=True)  # tokens past the last segment get num_segments
    if mode == "max":
        lowest = hidden.new_full((num_segments + 1, hidden.shape[1]), float("-inf"))
        index = segment[:, None].expand_as(hidden)
        return lowest.scatter_reduce(0, index, hidden, "amax")[:num_segments].masked_fill(empty, 0.0)
    totals = hidden.new_zeros(num_segments + 1, hidden.shape[1]).index_add(0, segment, hidden)[:num_segments]
    if token_weights is None:
        mass = (ends - starts).float()
    else:
        mass = hidden.new_zeros(num_segments + 1).index_add(0, segment, token_weights)[:num_segments]
    return totals / mass.clamp(min=1e-9)[:, None]
