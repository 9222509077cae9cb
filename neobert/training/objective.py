"""Masked language modelling as one module that computes its own loss.

Only masked positions reach the decoder: their hidden vectors are gathered, and cross-entropy runs over them in
chunks whose gradient is made at once, so that no (tokens, vocabulary) tensor outlives its chunk. Cost: the same
three matrix products as plain cross-entropy, chunk x V logits of memory instead of M x V.
Source: the fused linear cross-entropy of Liger (Hsu et al., 2024), in plain PyTorch.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neobert.model.heads import MaskedLM
from neobert.model.kernels.select import resolve_kernels
from neobert.model.ngpt import normalize_weights
from neobert.training.masking import IGNORED
from neobert.training.metrics import train_flops

CHUNK = {"cpu": 512, "cuda": 8192}
"""Rows of logits at once: a GPU is filled by them (1 GiB in fp32 at V = 32,768), a CPU keeps them in its cache."""


def _chunks(hidden: Tensor) -> list[slice]:
    size = CHUNK.get(hidden.device.type, 8192)
    return [slice(start, start + size) for start in range(0, hidden.shape[0], size)]


def _chunk_logits(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probabilities [c, V] fp32, targets [c, 1], whether counted [c, 1]) of one chunk of rows."""
    log_probabilities = torch.log_softmax((hidden @ weight.T).float(), dim=-1)
    return log_probabilities, labels[:, None].clamp_min(0), labels[:, None] != IGNORED


def _minus_one_hot(probabilities: Tensor, target: Tensor) -> Tensor:
    """`probabilities` [c, V] less 1 at each row's `target` [c, 1].

    On a CPU in place, where a fresh tensor costs more than the arithmetic; elsewhere as a comparison, which fuses with
    its neighbours and, unlike a scatter, needs no atomics.
    """
    if probabilities.device.type == "cpu":
        probabilities[torch.arange(len(target)), target[:, 0]] -= 1.0
        return probabilities
    return probabilities - (torch.arange(probabilities.shape[1], device=target.device) == target).float()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over rows of -log softmax(hidden @ weight.T)[label]; the gradient is computed in the forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        # fp32, so that summing over chunks does not round in bf16.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for rows in _chunks(hidden):
            log_probabilities, target, counted = _chunk_logits(hidden[rows], weight, labels[rows])
            loss = loss - (log_probabilities.gather(1, target) * counted).sum()
            grad = _minus_one_hot(log_probabilities.exp_(), target).mul_(counted).to(hidden.dtype)
            grad_hidden[rows] = grad @ weight
            grad_weight = grad_weight + grad.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss.to(grad_hidden.dtype), (grad_weight * grad_loss).to(ctx.weight_dtype), None


def with_bias(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(hidden, weight) of the same logits without a bias: the bias becomes the weight of a channel that is 1."""
    if bias is None:
        return hidden, weight
    return torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1), torch.cat([weight, bias[:, None]], 1)


def masked_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, kernels: str = "torch") -> Tensor:
    """Summed cross-entropy (0-d fp32) of `hidden` [M, H] under a decoder `weight` [V, H]; labels [M], -100 ignored.

    Under autocast the products run in its type; sums and the softmax in fp32. `kernels` is "liger" for Liger's.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled():
            if kernels == "liger":
                from neobert.model.kernels import liger

                return liger.linear_cross_entropy(hidden, weight, labels)
            return _ChunkedCrossEntropy.apply(hidden, weight, labels)
        loss = hidden.new_zeros((), dtype=torch.float32)
        for rows in _chunks(hidden):
            log_probabilities, target, counted = _chunk_logits(hidden[rows], weight, labels[rows])
            loss = loss - (log_probabilities.gather(1, target) * counted).sum()
        return loss


@torch.no_grad()
def masked_correct(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """How many rows' largest logit is their label (0-d fp32); chunked, so that full logits are never held."""
    correct = hidden.new_zeros((), dtype=torch.float32)
    for rows in _chunks(hidden):
        guesses = (hidden[rows] @ weight.to(hidden.dtype).T).argmax(dim=-1)
        correct = correct + (guesses == labels[rows]).sum()
    return correct


class PretrainModel(nn.Module):
    """A `MaskedLM` with its loss: forward(batch) -> (loss_sum, {"accuracy": sum of hits} when asked for).

    A batch holds input_ids[T], position_ids[T], cu_seqlens[S+1] int32, max_seqlen, masked_positions[M], labels[M].

    Args:
        model: the encoder and its decoder.
        masked_logits_only: gather masked positions before the decoder; otherwise make all logits (ablation).
        accuracy: count hits in training too (one more product with the decoder). Evaluation always does.
    """

    dynamic_dims: ClassVar[dict[str, int]] = {"cu_seqlens": 0}
    """Dimensions that differ from batch to batch; all others are static, so one compilation serves a run."""

    def __init__(self, model: MaskedLM, *, masked_logits_only: bool, accuracy: bool) -> None:
        super().__init__()
        self.model = model
        self.masked_logits_only = masked_logits_only
        self.accuracy = accuracy

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = self.model.encoder(batch["input_ids"], batch["position_ids"], batch["cu_seqlens"], batch["max_seqlen"])
        positions, labels = batch["masked_positions"], batch["labels"]
        masked, weight = with_bias(hidden.index_select(0, positions), *self.model.output_projection())
        if self.masked_logits_only:
            kernels = resolve_kernels(self.model.config.kernel_backend, masked.device.type)
            loss = masked_cross_entropy(masked, weight, labels, kernels)
        else:
            # Entries that fill a row up all name its column 0, so labels stay in the list's order, not the stream's.
            logits = self.model.logits(hidden).index_select(0, positions).float()
            loss = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        counted = self.accuracy or not self.training
        return loss, {"accuracy": masked_correct(masked, weight, labels)} if counted else {}

    def after_update(self) -> None:
        """Called after each optimizer step: an nGPT's weights go back to unit norm."""
        if self.model.config.ngpt:
            normalize_weights(self.model)

    def train_flops(self, host: dict[str, int]) -> float:
        """FLOPs of a forward and backward over a micro-batch's host integers."""
        predicted = host["count"] if self.masked_logits_only else host["tokens"]
        config, vocab = self.model.config, self.model.encoder.vocab_size
        return train_flops(config, vocab, host["tokens"], host["squared_lengths"], predicted)
