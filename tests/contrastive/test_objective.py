"""The objective: chunked equals whole, compiled equals eager, the bag equals its definition."""

from pathlib import Path

import numpy as np
import pytest
import torch

from neobert.contrastive.batching import Schedule
from neobert.contrastive.loss import MultipleNegativesRankingLoss
from neobert.contrastive.objective import ContrastiveModel
from neobert.contrastive.pairs import Pairs
from neobert.contrastive.source import PairSource
from neobert.contrastive.warmup import BagOfEmbeddings, inverse_document_frequencies, settle
from neobert.model.batch import flatten
from neobert.model.embedding import EmbeddingModel
from neobert.model.storage import load_model
from neobert.training.qk_clip import QkClip
from neobert.training.source import HOST_KEYS


def objective(root: Path, token_weights: bool = True, bag: bool = False) -> ContrastiveModel:
    model, _, _ = load_model(root / "model")
    embedder = EmbeddingModel(model.encoder, "mean", True, token_weights)
    if token_weights:
        embedder.set_token_weights(torch.linspace(0.5, 4.0, 128))
    return ContrastiveModel(
        BagOfEmbeddings(embedder) if bag else embedder, MultipleNegativesRankingLoss(20.0, symmetric=True)
    )


def source(root: Path, **changes) -> PairSource:
    pairs = Pairs(root / "pairs", "train")
    return PairSource(pairs, Schedule(pairs, 12, {}, 1.0, 0), **({"pad_token_id": 0, "max_negatives": 2} | changes))


def loss_and_gradients(module: ContrastiveModel, batch: dict) -> tuple[torch.Tensor, list[torch.Tensor]]:
    module.zero_grad()
    loss, _ = module({key: value for key, value in batch.items() if key not in HOST_KEYS})
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("mini_batch_size", [1, 5, 20])
def test_grad_cache_changes_nothing(world, mini_batch_size):
    module = objective(world)
    whole = loss_and_gradients(module, source(world).micro_batches(0, 12, 12, 0, 1)[0])
    chunked = source(world, mini_batch_size=mini_batch_size, multiple=8).micro_batches(0, 12, 12, 0, 1)[0]
    assert len(chunked["chunks"]) > 1
    loss, gradients = loss_and_gradients(module, chunked)
    assert torch.allclose(loss, whole[0], rtol=1e-5)
    for a, b in zip(gradients, whole[1], strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_qk_clip_measures_the_same_in_chunks(world):
    """Each chunk is encoded twice, once for the loss and once for its gradient."""
    measured = []
    for sizes in ({}, {"mini_batch_size": 5}):
        module = objective(world)
        clip = QkClip(module, 1.0)
        loss_and_gradients(module, source(world, **sizes).micro_batches(0, 12, 12, 0, 1)[0])
        measured.append(torch.stack([attention.max_logits for attention in clip.attentions]))
    torch.testing.assert_close(*measured)
    assert measured[0].isfinite().all()


def test_compiled_equals_eager_whatever_the_sizes(world):
    module, eager = objective(world), objective(world)
    torch._dynamo.reset()
    module.compile(backend="eager", fullgraph=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for step in range(3):
        batch = source(world, multiple=8, mini_batch_size=20).micro_batches(step * 12, 12, 12, 0, 1)[0]
        (loss, gradients), (expected, others) = (loss_and_gradients(m, batch) for m in (module, eager))
        assert torch.allclose(loss, expected, rtol=1e-4)
        for a, b in zip(gradients, others, strict=True):
            assert torch.allclose(a, b, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs <= 3


@pytest.mark.parametrize("token_weights", [False, True])
def test_bag_is_the_weighted_mean_of_embeddings(world, token_weights):
    module = objective(world, token_weights, bag=True)
    batch = source(world, multiple=64).micro_batches(0, 12, 12, 0, 1)[0]
    found = module.embed(batch)
    table = module.embedder.embeddings.weight
    weights = torch.linspace(0.5, 4.0, 128) if token_weights else torch.ones(128)
    starts = batch["cu_seqlens"].tolist()
    for i in range(len(batch["order"])):
        ids = batch["input_ids"][starts[i] : starts[i + 1]]
        w = weights[ids][:, None]
        assert torch.allclose(found[i], (table[ids] * w).sum(0) / w.sum(), atol=1e-6)
    found.sum().backward()
    assert table.grad is not None
    assert torch.isfinite(table.grad).all()


def test_settling_moves_lengths_into_token_weights(world):
    embedder = objective(world).embedder
    with torch.no_grad():
        embedder.encoder.embeddings.weight.mul_(torch.rand(128, 1) * 3 + 0.1)
        embedder.encoder.norm.weight.uniform_(0.5, 2.0)
    embedder.encoder.layers = torch.nn.ModuleList()  # an encoder without blocks
    batch = flatten([np.array([2, 7, 30, 3]), np.array([2, 99, 3])], 0)
    bag = torch.nn.functional.normalize(BagOfEmbeddings(embedder)(batch, 2), dim=-1)
    settle(embedder, rms=0.7)
    assert torch.allclose(embedder(batch, 2), bag, atol=1e-5)
    rows = embedder.encoder.embeddings.weight.square().mean(dim=1).sqrt()
    assert torch.allclose(rows[1:], torch.full((127,), 0.7), atol=1e-4)
    assert rows[0] == 0


def test_inverse_document_frequencies(world):
    pairs = Pairs(world / "pairs", "train")
    idf = inverse_document_frequencies(pairs, 128)
    documents = [set(d.tolist()) for d in pairs.take(range(pairs.rows)).positives]
    for token in (2, 20, 70, 127):
        df = sum(token in d for d in documents)
        assert idf[token].item() == pytest.approx(np.log(1 + (pairs.rows - df + 0.5) / (df + 0.5)))
    assert (idf > 0).all()
    assert idf[2] < 0.01  # [CLS] is in every text
