"""Contrastive losses over embeddings, each with one file-local definition and a test against sentence-transformers.

Legend: B local pairs, G pairs of all ranks, N negatives of all ranks, H width. All losses return the SUM over the
local queries, in fp32, whatever the precision of the encoder: an exponent of scale 20 and more leaves bf16 no room.
Cost: B x (G + N) x H multiply-adds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultipleNegativesRankingLoss(nn.Module):
    """InfoNCE with in-batch negatives: each query ranks its positive before all other documents of the batch.

    Args:
        scale: multiplies cosines; 1 / temperature.
        symmetric: also rank queries for each positive, and average the two (sentence-transformers' directions
            ``query_to_doc`` and ``doc_to_query``, ``per_direction``).
        false_negative_margin: candidates whose cosine exceeds the positive's by more are left out of the denominator.

    Source: van den Oord et al. 2018; Henderson et al. 2017.
    """

    def __init__(self, scale: float, symmetric: bool = False, false_negative_margin: float | None = None) -> None:
        super().__init__()
        self.scale, self.symmetric, self.margin = scale, symmetric, false_negative_margin

    def forward(
        self, queries: Tensor, positives: Tensor, negatives: Tensor, first: int, count: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss summed over pairs ``first : first + count`` and how many of them rank their positive first.

        Args:
            queries: [G, H] of the whole batch. positives: [G, H]. negatives: [N, H], in any number a pair.
            first, count: which pairs are this rank's.
        """
        queries, positives, negatives = (F.normalize(x.float(), dim=-1) for x in (queries, positives, negatives))
        local = slice(first, first + count)
        own = torch.arange(first, first + count, device=queries.device)[:, None]
        cosines = queries[local] @ torch.cat([positives, negatives]).T
        positive = cosines.gather(1, own)
        denominator = self._log_denominator(cosines, positive)
        if self.symmetric:
            denominator = (denominator + self._log_denominator(positives[local] @ queries.T, positive)) / 2
        return (denominator - self.scale * positive).sum(), self._ranks(cosines.detach(), positive.detach())

    def _log_denominator(self, cosines: Tensor, positive: Tensor) -> Tensor:
        if self.margin is not None:
            too_near = cosines.detach() > positive.detach() + self.margin
            cosines = cosines.masked_fill(too_near, float("-inf"))
        return torch.logsumexp(self.scale * cosines, dim=1, keepdim=True)

    def _ranks(self, cosines: Tensor, positive: Tensor) -> dict[str, Tensor]:
        """Sums over queries of how well the positive ranks; a document of equal text ties and does not count."""
        ahead = (cosines > positive + 1e-6).sum(dim=1)
        sums = {"accuracy": (ahead == 0).sum().float()}
        if not self.training:
            sums["recall_at_10"] = (ahead < 10).sum().float()
            sums["mrr_at_10"] = ((ahead < 10) / (ahead + 1.0)).sum()
        return sums
