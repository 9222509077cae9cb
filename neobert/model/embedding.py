"""Text embeddings: encode, pool, normalise.

Contrastive training, export and evaluation share this one module, so that a score is always of the model that was
trained. Optional token weights: one positive number a token id, ``softplus`` of a parameter, which may start at the
inverse document frequency and is trained with the rest. Cost beyond the encoder: one read of [T, H].
"""

import torch
import torch.nn.functional as F
from torch import nn

from neobert.model.batch import FlatBatch
from neobert.model.encoder import Encoder
from neobert.model.pooling import MODES, pool


def look_up(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """``values[ids]`` of [V] at [T], with a gradient that is the same in every run.

    Indexing's is summed by threads in any order on a CPU, ``index_select``'s on a GPU; an embedding's on neither.
    """
    return F.embedding(ids, values[:, None])[:, 0]


class EmbeddingModel(nn.Module):
    """Flat batch to embeddings.

    Args:
        encoder: a trained encoder.
        pooling: ``mean``, ``cls`` or ``max``.
        normalize: scale each embedding to length 1.
        token_weights: weigh tokens by id in the pooling; all start at 1.
    """

    def __init__(self, encoder: Encoder, pooling: str, normalize: bool, token_weights: bool = False) -> None:
        super().__init__()
        if pooling not in MODES:
            raise ValueError(f"pooling {pooling!r} is not one of {', '.join(MODES)}")
        self.encoder, self.pooling, self.normalize = encoder, pooling, normalize
        self.token_weights: nn.Parameter | None = None
        if token_weights:
            self.token_weights = nn.Parameter(torch.empty(encoder.vocab_size))
            self.set_token_weights(torch.ones(encoder.vocab_size))

    @torch.no_grad()
    def set_token_weights(self, weights: torch.Tensor) -> None:
        """Start from ``weights`` [V], for example inverse document frequencies.

        Raises:
            ValueError: the model has no token weights, the shape differs, or one is not positive.
        """
        if self.token_weights is None:
            raise ValueError("this model was built without token weights")
        if weights.shape != self.token_weights.shape or not bool((weights > 0).all()):
            raise ValueError(f"token weights must be {tuple(self.token_weights.shape)} positive numbers")
        weights = weights.to(self.token_weights.device, torch.float64)
        self.token_weights.copy_(weights + torch.log(-torch.expm1(-weights)))  # the inverse of softplus

    def weight_table(self) -> torch.Tensor | None:
        """The weights in use by token id, [V], or None."""
        return None if self.token_weights is None else F.softplus(self.token_weights)

    def extra_state(self) -> dict[str, torch.Tensor]:
        """What a model directory keeps beside the encoder and decoder."""
        return {} if self.token_weights is None else {"token_weights": self.token_weights.detach()}

    def forward(self, batch: FlatBatch, num_segments: int) -> torch.Tensor:
        """Embeddings [num_segments, H] in fp32 of the batch's first ``num_segments`` segments."""
        hidden = self.encoder(*batch)
        weights = None if self.token_weights is None else F.softplus(look_up(self.token_weights, batch.input_ids))
        pooled = pool(hidden, batch.cu_seqlens, num_segments, self.pooling, weights)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled
