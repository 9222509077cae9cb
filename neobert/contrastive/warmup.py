"""Embedding warm-up: train the embedding table alone, as a bag of embeddings, with the contrastive loss.

The weighted mean of a text's embeddings stands for the text, so a step is one gather-and-sum instead of a transformer:
about 2M tokens a second a CPU core, where a small transformer takes 10k. It learns which words mean alike, over all
pairs, before the transformer sees a few of them.

The encoder ends in a norm that takes a token's length away, so afterwards ``settle`` moves the lengths into the token
weights, which pooling applies after the norm: the encoder without its blocks then equals the trained bag.
"""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neobert.contrastive.pairs import Pairs
from neobert.model.embedding import EmbeddingModel, look_up

IDF_PAIRS = 200_000


class BagOfEmbeddings(nn.Module):
    """A copy of ``embedder``'s embedding table and token weights, without the rest of its encoder.

    A copy, because a training may shard or move what it trains. Called like the model itself:
    ``bag(FlatBatch, num_segments) -> [num_segments, H]``.
    """

    def __init__(self, embedder: EmbeddingModel) -> None:
        super().__init__()
        self.embeddings = copy.deepcopy(embedder.encoder.embeddings)
        self.token_weights = copy.deepcopy(embedder.token_weights)

    def forward(self, batch: Any, num_segments: int) -> Tensor:
        starts = batch.cu_seqlens[:-1].long()
        ids, table = batch.input_ids, self.embeddings.weight
        if self.token_weights is None:
            weights = torch.ones_like(ids, dtype=table.dtype)
        else:
            weights = look_up(F.softplus(self.token_weights), ids).to(table.dtype)
        total = F.embedding_bag(ids, table, starts, mode="sum", per_sample_weights=weights)[:num_segments]
        mass = F.embedding_bag(
            torch.zeros_like(ids), table.new_ones(1, 1), starts, mode="sum", per_sample_weights=weights
        )
        return total.float() / mass[:num_segments].float().clamp(min=1e-9)


@torch.no_grad()
def settle(embedder: EmbeddingModel, rms: float) -> None:
    """Move the embeddings' lengths into the token weights and give every row the root mean square ``rms``.

    Exact for RMSNorm (with its gain) and nGPT: without its blocks the encoder then pools to the same direction as the
    bag did. For LayerNorm up to its centring. The residual stream adds the blocks' outputs to these rows, so a large
    ``rms`` lets the bag prevail at first. nGPT's rows have unit length whatever ``rms`` says.

    Raises:
        ValueError: the model has no token weights.
    """
    weights = embedder.weight_table()
    if weights is None:
        raise ValueError("settling a warm-up needs token weights")
    encoder = embedder.encoder
    gain = getattr(encoder.norm, "weight", None)
    rows = encoder.embeddings.weight if gain is None else encoder.embeddings.weight / gain
    sizes = rows.square().mean(dim=1, keepdim=True).sqrt()
    present = sizes > 0  # padding's row stays zero
    encoder.embeddings.weight.copy_(torch.where(present, rows / sizes.clamp_min(1e-12) * rms, rows))
    # The weights' scale has no meaning for a mean; keep their mean as it was.
    scaled = torch.where(present, weights[:, None] * sizes, weights[:, None])[:, 0]
    embedder.set_token_weights((scaled * (weights.mean() / scaled.mean())).clamp_min(1e-8))


def inverse_document_frequencies(pairs: Pairs, vocab_size: int) -> Tensor:
    """[V] positive weights: BM25's ``log(1 + (N - df + 0.5) / (df + 0.5))`` over the positives of the pairs.

    At most the first 200,000 pairs are counted. Special tokens, which are in every text, get next to nothing.
    """
    rows = min(pairs.rows, IDF_PAIRS)
    documents = pairs.take(range(rows), max_negatives=0).positives
    frequency = np.zeros(vocab_size, dtype=np.int64)
    for document in documents:
        frequency[np.unique(document)] += 1
    return torch.from_numpy(np.log1p((rows - frequency + 0.5) / (frequency + 0.5)))
