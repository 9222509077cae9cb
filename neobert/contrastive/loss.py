"""Contrastive losses over embeddings, each with a test against sentence-transformers or a plain reference.

Legend: B local pairs, G pairs of all ranks, N negatives of all ranks, H width. A loss is called as
``loss(queries [G, H], positives [G, H], negatives [N, H], labels [G], first, count)``, where pairs
``first : first + count`` are this rank's and pairs of equal label are positives of each other, and returns the SUM over
this rank's, and sums of figures. It computes in fp32,
whatever the precision of the encoder: an exponent of scale 20 and more leaves bf16 no room.
Cost: B x (G + N) x H multiply-adds.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Result = tuple[Tensor, dict[str, Tensor]]


def _unit(*embeddings: Tensor) -> list[Tensor]:
    return [F.normalize(x.float(), dim=-1) for x in embeddings]


def others_of_class(labels: Tensor, local: slice, negatives: int) -> Tensor:
    """[B, G + negatives] bool: the document is the positive of another pair of the same class."""
    same = labels[local, None] == labels[None]
    same.diagonal(local.start).fill_(False)
    return F.pad(same, (0, negatives))


def ranks(cosines: Tensor, positive: Tensor, related: Tensor, training: bool) -> dict[str, Tensor]:
    """Sums over queries of how well the positive [B, 1] ranks among the documents [B, G + N] that are not ``related``.

    A document of equal text has an equal cosine and does not count against the positive.
    """
    ahead = ((cosines.detach() > positive.detach() + 1e-6) & ~related).sum(dim=1)
    sums = {"accuracy": (ahead == 0).sum().float()}
    if not training:
        sums["recall_at_10"] = (ahead < 10).sum().float()
        sums["mrr_at_10"] = ((ahead < 10) / (ahead + 1.0)).sum()
    return sums


class MultipleNegativesRankingLoss(nn.Module):
    """InfoNCE with in-batch negatives: each query ranks its positive before all documents of other classes.

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
        self, queries: Tensor, positives: Tensor, negatives: Tensor, labels: Tensor, first: int, count: int
    ) -> Result:
        """See the module."""
        queries, positives, negatives = _unit(queries, positives, negatives)
        local = slice(first, first + count)
        own = torch.arange(first, first + count, device=queries.device)[:, None]
        cosines = queries[local] @ torch.cat([positives, negatives]).T
        positive = cosines.gather(1, own)
        related = others_of_class(labels, local, len(negatives))
        denominator = self._log_denominator(cosines, own, positive, related)
        if self.symmetric:
            backwards = positives[local] @ queries.T
            backwards = self._log_denominator(backwards, own, positive, related[:, : len(queries)])
            denominator = (denominator + backwards) / 2
        return (denominator - self.scale * positive).sum(), ranks(cosines, positive, related, self.training)

    def _log_denominator(self, cosines: Tensor, own: Tensor, positive: Tensor, left_out: Tensor) -> Tensor:
        if self.margin is not None:
            left_out = left_out | (cosines.detach() > positive.detach() + self.margin)
            # The pair itself is no false negative. With a margin near 0 it would pass for one: the backward product
            # rounds its cosine otherwise than the forward one, which `positive` is of.
            left_out = left_out.scatter(1, own, False)
        cosines = cosines.masked_fill(left_out, float("-inf"))
        return torch.logsumexp(self.scale * cosines, dim=1, keepdim=True)


class SupConLoss(nn.Module):
    """Supervised contrastive loss: every text of the batch pulls all texts of its class.

    A pair's two texts are of its class, a hard negative is of none. Each of the two is an anchor, its candidates are
    all other texts; the pair's loss is the mean of the two.

    Source: Khosla et al. 2020, the sum outside of the logarithm.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(
        self, queries: Tensor, positives: Tensor, negatives: Tensor, labels: Tensor, first: int, count: int
    ) -> Result:
        """See the module."""
        queries, positives, negatives = _unit(queries, positives, negatives)
        local = slice(first, first + count)
        texts = torch.cat([queries, positives, negatives])
        own = torch.arange(first, first + count, device=queries.device)
        same = labels[local, None] == labels[None]
        same = torch.cat([same, same, same.new_zeros(count, len(negatives))], dim=1)
        loss = queries.new_zeros(())
        for anchors, themselves in ((queries[local], own), (positives[local], own + len(queries))):
            logits = self.scale * (anchors @ texts.T)
            itself = torch.zeros_like(same).scatter(1, themselves[:, None], True)
            log_probability = logits - torch.logsumexp(logits.masked_fill(itself, float("-inf")), dim=1, keepdim=True)
            partners = same & ~itself
            loss = loss - ((log_probability * partners).sum(1) / partners.sum(1)).sum() / 2
        cosines = queries[local] @ texts[len(queries) :].T
        related = others_of_class(labels, local, len(negatives))
        return loss, ranks(cosines, cosines.gather(1, own[:, None]), related, self.training)


class MatryoshkaLoss(nn.Module):
    """The sum of a loss over embeddings cut to their first ``dims`` numbers, so that short ones work too.

    Figures are those of the longest. Source: Kusupati et al. 2022.
    """

    def __init__(self, loss: nn.Module, dims: Iterable[int]) -> None:
        super().__init__()
        self.loss, self.dims = loss, sorted(dims)

    def forward(
        self, queries: Tensor, positives: Tensor, negatives: Tensor, labels: Tensor, first: int, count: int
    ) -> Result:
        """See the module."""
        total, sums = queries.new_zeros((), dtype=torch.float32), {}
        for dim in self.dims:
            part, sums = self.loss(queries[:, :dim], positives[:, :dim], negatives[:, :dim], labels, first, count)
            total = total + part
        return total, sums
