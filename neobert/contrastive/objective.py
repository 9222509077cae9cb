"""The module that contrastive training trains: a batch of pairs in, its summed loss out.

GradCache by checkpointing: each chunk's encoding is a checkpoint, so the forward keeps only embeddings, and the
backward, entered with the gradient of the whole batch's loss, encodes one chunk again at a time. That is Gao et al.'s
(2021) gradient cache, but inside autograd: DDP, dropout and mixed precision need nothing of their own. Cost: one more
forward than all texts at once, memory of one chunk's activations.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neobert.contrastive.gather import gather_rows
from neobert.model.batch import FlatBatch


class ContrastiveModel(nn.Module):
    """An embedding model with its loss: forward(batch) -> (loss_sum, {"accuracy": hits}).

    Args:
        embedder: called as ``embedder(FlatBatch, num_segments) -> [num_segments, H]``.
        loss: one of ``neobert.contrastive.loss``.
        constraint: called after each optimizer step (an nGPT's unit norms).

    A batch is what ``neobert.contrastive.source.PairSource`` makes: texts in the order queries, positives, negatives.
    """

    dynamic_dims: ClassVar[dict[str, int]] = {}

    def __init__(self, embedder: nn.Module, loss: nn.Module, constraint: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.embedder, self.loss, self.constraint = embedder, loss, constraint

    def after_update(self) -> None:
        """See `neobert.training.source.Objective`."""
        if self.constraint is not None:
            self.constraint()

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the encoder alone, for any sizes: a step's tokens, texts and chunks differ from the last one's."""
        self.embedder.compile(*args, **{**options, "dynamic": True})

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """[texts, H] embeddings of all texts of this rank, in their own order."""
        chunks = batch["chunks"]
        found = []
        for t0, t1, s0, s1, texts, longest in chunks:
            flat = FlatBatch(
                batch["input_ids"][t0:t1], batch["position_ids"][t0:t1], batch["cu_seqlens"][s0 : s1 + 1] - t0, longest
            )
            if len(chunks) > 1 and torch.is_grad_enabled():
                found.append(checkpoint(self.embedder, flat, texts, use_reentrant=False))
            else:
                found.append(self.embedder(flat, texts))
        return torch.cat(found)[batch["order"]]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        embeddings = self.embed(batch)
        rank, pairs, negatives = batch["rank"], batch["pair_sizes"], batch["negative_sizes"]
        count = pairs[rank]
        with torch.autocast(embeddings.device.type, enabled=False):
            q, p, n = embeddings.float().split([count, count, negatives[rank]])
            q, p, n = (
                gather_rows(x, rank, sizes) for x, sizes in zip((q, p, n), (pairs, pairs, negatives), strict=True)
            )
            return self.loss(q, p, n, batch["labels"], sum(pairs[:rank]), count)

    def train_flops(self, host: dict[str, int]) -> float | None:
        """Unknown: a chunked step encodes twice, and MFU is pretraining's figure."""
        return None
