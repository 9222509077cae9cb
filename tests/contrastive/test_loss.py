"""Losses against sentence-transformers' own on the same embeddings, and against a plain reference."""

import numpy as np
import pytest
import torch

from neobert.contrastive.loss import MatryoshkaLoss, MultipleNegativesRankingLoss, SupConLoss


def embeddings(pairs: int, negatives: int, width: int = 16) -> list[torch.Tensor]:
    torch.manual_seed(pairs + negatives)
    return [torch.randn(n, width, requires_grad=True) for n in (pairs, pairs, negatives)]


def gradients(loss: torch.Tensor, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [g for g in torch.autograd.grad(loss, tensors, allow_unused=True) if g is not None]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("scale", [20.0, 50.0])
def test_equals_sentence_transformers(symmetric, negatives, scale):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss as Theirs

    q, p, n = embeddings(7, 7 * negatives)
    directions = ("query_to_doc", "doc_to_query") if symmetric else ("query_to_doc",)
    mode = "per_direction" if symmetric else "joint"
    theirs = Theirs(torch.nn.Identity(), scale=scale, directions=directions, partition_mode=mode)
    # Theirs takes one column a negative; ours takes them in any order.
    columns = list(n.view(7, negatives, -1).unbind(1)) if negatives else []
    expected = theirs.compute_loss_from_embeddings([q, p, *columns], None)
    loss, metrics = MultipleNegativesRankingLoss(scale, symmetric)(q, p, n, torch.arange(7), 0, 7)
    assert torch.allclose(loss / 7, expected, atol=1e-5)
    for ours, other in zip(gradients(loss / 7, [q, p, n]), gradients(expected, [q, p, n]), strict=False):
        assert torch.allclose(ours, other, atol=1e-5)
    assert 0 <= metrics["accuracy"] <= 7


def test_ragged_negatives_and_margin_against_a_plain_reference():
    q, p, n = embeddings(5, 4)
    unit = [np.asarray(x.detach() / x.detach().norm(dim=1, keepdim=True), dtype=np.float64) for x in (q, p, n)]
    cosines = unit[0] @ np.concatenate(unit[1:]).T
    expected = 0.0
    for i in range(5):
        kept = [c for j, c in enumerate(cosines[i]) if j == i or c <= cosines[i, i] + 0.1]
        expected += np.log(np.exp(20 * np.array(kept)).sum()) - 20 * cosines[i, i]
    loss, _ = MultipleNegativesRankingLoss(20.0, false_negative_margin=0.1)(q, p, n, torch.arange(5), 0, 5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert expected < MultipleNegativesRankingLoss(20.0)(q, p, n, torch.arange(5), 0, 5)[0].item()


@pytest.mark.parametrize("pairs", [2, 3, 4])
def test_a_margin_of_nothing_keeps_a_pair_s_own_positive_both_ways(pairs):
    """The backward product sums in another order, so rounding may put a pair's own cosine above itself."""
    for seed in range(20):
        torch.manual_seed(seed)
        q, n = torch.randn(pairs, 64), torch.randn(5, 64)
        p = q * 0.25 + torch.randn(pairs, 64)
        unit = [torch.nn.functional.normalize(x.double(), dim=1) for x in (q, p, n)]
        cosines = unit[0] @ torch.cat(unit[1:]).T
        own = cosines.diagonal()[:, None]
        expected = 0.0
        for direction in (cosines, cosines[:, :pairs].T):
            kept = direction.masked_fill((direction > own) & ~torch.eye(*direction.shape, dtype=torch.bool), -torch.inf)
            expected += (torch.logsumexp(20 * kept, dim=1) - 20 * own[:, 0]).sum().item() / 2
        loss, _ = MultipleNegativesRankingLoss(20.0, True, 0.0)(q, p, n, torch.arange(pairs), 0, pairs)
        assert loss.item() == pytest.approx(expected, abs=1e-3), seed


@pytest.mark.parametrize("symmetric", [False, True])
def test_pairs_of_one_label_are_no_negatives(symmetric):
    q, p, n = embeddings(5, 2)
    labels = [7, 3, 7, 5, 3]
    unit = [np.asarray(x.detach() / x.detach().norm(dim=1, keepdim=True), dtype=np.float64) for x in (q, p, n)]
    expected = 0.0
    for i in range(5):
        others = [j for j in range(5) if j == i or labels[j] != labels[i]]
        forward = [*(unit[0][i] @ unit[1][j] for j in others), *(unit[0][i] @ x for x in unit[2])]
        backward = [unit[1][i] @ unit[0][j] for j in others]
        for cosines in (forward, backward) if symmetric else (forward,):
            expected += (np.log(np.exp(20 * np.array(cosines)).sum()) - 20 * unit[0][i] @ unit[1][i]) / (1 + symmetric)
    loss = MultipleNegativesRankingLoss(20.0, symmetric)
    whole, _ = loss(q, p, n, torch.tensor(labels), 0, 5)
    assert whole.item() == pytest.approx(expected, rel=1e-5)
    parts = [loss(q, p, n, torch.tensor(labels), first, count)[0] for first, count in ((0, 3), (3, 2))]
    assert torch.allclose(sum(parts), whole)


def test_positives_of_the_same_label_do_not_count_as_ahead():
    q = torch.eye(4)[:3]
    documents = q[[0, 2, 1]]  # queries 1 and 2 each find the other's document first
    for labels, hits in (([1, 2, 3], 1), ([1, 2, 2], 3)):
        _, metrics = MultipleNegativesRankingLoss(20.0).eval()(q, documents, q[:0], torch.tensor(labels), 0, 3)
        assert metrics["accuracy"] == hits


def test_parts_add_up_to_the_whole():
    q, p, n = embeddings(6, 3)
    loss = MultipleNegativesRankingLoss(20.0, symmetric=True)
    whole = loss(q, p, n, torch.arange(6), 0, 6)[0]
    assert torch.allclose(
        loss(q, p, n, torch.arange(6), 0, 2)[0] + loss(q, p, n, torch.arange(6), 2, 4)[0], whole, rtol=1e-6
    )


def test_ranks_in_evaluation():
    loss = MultipleNegativesRankingLoss(20.0).eval()
    q = torch.eye(4)[:3]
    _, metrics = loss(q, q[[0, 2, 2]], q[:0], torch.arange(3), 0, 3)
    # Query 1 is at right angles to all documents: they tie. Query 2 meets its document twice, which is no error.
    assert metrics["accuracy"] == 3
    assert metrics["recall_at_10"] == 3
    assert metrics["mrr_at_10"] == pytest.approx(3)


def test_bf16_embeddings_are_compared_in_fp32():
    q, p, n = (x.detach().bfloat16() for x in embeddings(4, 2))
    loss, _ = MultipleNegativesRankingLoss(20.0)(q, p, n, torch.arange(4), 0, 4)
    assert loss.dtype == torch.float32
    assert torch.allclose(
        loss, MultipleNegativesRankingLoss(20.0)(q.float(), p.float(), n.float(), torch.arange(4), 0, 4)[0]
    )


def test_supcon_against_a_plain_reference():
    q, p, n = embeddings(4, 3)
    labels = torch.tensor([7, 3, 7, 5])
    texts = torch.nn.functional.normalize(torch.cat([q, p, n]), dim=-1).double().detach()
    classes = [*labels.tolist(), *labels.tolist(), -1, -2, -3]
    expected = 0.0
    for i in range(8):
        others = [j for j in range(11) if j != i]
        log_z = torch.logsumexp(20 * texts[i] @ texts[others].T, 0)
        partners = [j for j in others if classes[j] == classes[i]]
        expected -= sum(20 * texts[i] @ texts[j] - log_z for j in partners) / len(partners) / 2
    loss, metrics = SupConLoss(20.0)(q, p, n, labels, 0, 4)
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)
    parts = [SupConLoss(20.0)(q, p, n, labels, first, 2)[0] for first in (0, 2)]
    assert torch.allclose(sum(parts), loss)
    assert set(metrics) == {"accuracy"}


def test_matryoshka_equals_sentence_transformers():
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss as Theirs
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss as TheirRanking

    class Embedded(torch.nn.Module):
        """Stands for a SentenceTransformer whose features are embeddings already."""

        def forward(self, features):
            return {"sentence_embedding": features["x"]}

        def get_embedding_dimension(self):
            return 16

        get_sentence_embedding_dimension = get_embedding_dimension

    q, p, _ = embeddings(6, 0)
    model = Embedded()
    theirs = Theirs(model, TheirRanking(model), matryoshka_dims=[16, 8, 4])
    expected = theirs([{"x": q}, {"x": p}], None)
    loss, _ = MatryoshkaLoss(MultipleNegativesRankingLoss(20.0), [4, 8, 16])(q, p, q[:0], torch.arange(6), 0, 6)
    assert torch.allclose(loss / 6, expected, atol=1e-5)
