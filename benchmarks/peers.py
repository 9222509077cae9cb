"""Other encoders' training steps, on the same rows: transformers' EuroBERT of the same dimensions, and ModernBERT-base.

All with sdpa, bf16 autocast, fused AdamW, clipping, full logits, and rows as dense [rows, length] input whose every
token counts in tokens/s. They attend over whole rows, since transformers' sdpa knows no packing; their FLOPs are
counted so. Their input stays on the device.

EuroBERT runs as it ships, compiled and eager, and compiled with help. Under torch.compile, transformers 5.17 makes a
mask of ones where there is no padding, in a layout that sdpa's fast kernels refuse; what remains materialises all
scores, and 64 rows of 1024 tokens do not fit on a GPU of 140 GB, so they go in several micro-batches. Rows are full
here, so no mask is needed: with help, none is made. ModernBERT is helped likewise.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from benchmarks.subject import ROWS, Timed, TrainerStep
from benchmarks.synthetic import MASK, PAD, SEP

BATCHES = 8
"""Batches kept on the device and reused in turn: peers are spared the cost of loading."""


def no_mask(**_: Any) -> None:
    """What a helped peer has instead."""


class Peer(Timed):
    """A transformers model with a masked-language-model head, trained on `ours`' rows.

    Attributes:
        compiled: by torch.compile, where ours is.
        own_mask: make the attention mask that transformers makes.
        rows_at_once: rows of a micro-batch; None takes all rows of a step.
    """

    label = ""
    compiled = True
    own_mask = False
    rows_at_once: int | None = None

    def __init__(self, ours: TrainerStep) -> None:
        self.ours = ours
        super().__init__(self.label)

    def config(self) -> Any:
        """The model's configuration."""
        raise NotImplementedError

    def build(self) -> None:
        """Model, optimizer and a few batches on the device."""
        from transformers import AutoModelForMaskedLM

        device = self.ours.train_step.workers.device
        config = self.config()
        model = AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa").to(device).train()
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.forward = torch.compile(model) if self.compiled and self.ours.trainer.torch_compile else model
        size, length = self.ours.trainer.per_device_train_batch_size, self.ours.packing.max_length
        self.batches = [self._batch(i * size, size, device) for i in range(min(BATCHES, ROWS // size))]
        self.turn = 0
        self.tokens = size * length
        self.flops = self._flops(config, size, length)

    def _batch(self, start: int, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        rows, _ = self.ours.data.take(np.arange(start, start + size) % ROWS)
        ids = torch.from_numpy(rows.astype(np.int64))
        chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(start)) < 0.2
        labels = torch.where(chosen, ids, -100)
        return torch.where(chosen, MASK, ids).to(device), labels.to(device)

    def _flops(self, config: Any, rows: int, length: int) -> float:
        """Products of the model's linear layers, logits included, and attention over rows: forward times three."""
        tokens = rows * length
        linear = sum(m.weight.numel() for m in self.model.modules() if isinstance(m, nn.Linear))
        attention = sum(4 * config.hidden_size * tokens * width for width in self.attended(config, length))
        return 3.0 * (2 * tokens * linear + attention)

    def attended(self, config: Any, length: int) -> list[int]:
        """Keys that a query of each layer looks at."""
        return [length] * config.num_hidden_layers

    def masks(self) -> contextlib.AbstractContextManager[Any]:
        """What transformers' code is changed by during a step."""
        if self.own_mask:
            return contextlib.nullcontext()
        return mock.patch.object(sys.modules[type(self.model).__module__], "create_bidirectional_mask", no_mask)

    def step(self) -> None:
        """Forward with full logits and backward, micro-batch by micro-batch; clipping and update."""
        all_ids, all_labels = self.batches[self.turn % len(self.batches)]
        self.turn += 1
        trainer, size = self.ours.trainer, self.rows_at_once or len(all_ids)
        parts = list(zip(all_ids.split(size), all_labels.split(size), strict=True))
        for ids, labels in parts:
            autocast = torch.autocast(ids.device.type, torch.bfloat16, enabled=trainer.mixed_precision == "bf16")
            with self.masks(), autocast:
                loss = self.forward(input_ids=ids, labels=labels).loss / len(parts)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class EuroBert(Peer):
    """transformers' EuroBERT with our dimensions, without its mask."""

    label = "HF EuroBERT, compiled, helped: no mask"

    def config(self) -> Any:
        from transformers import EuroBertConfig

        mine = self.ours.model_config
        return EuroBertConfig(
            vocab_size=self.ours.vocab_size,
            hidden_size=mine.hidden_size,
            intermediate_size=mine.mlp_size,
            num_hidden_layers=mine.num_hidden_layers,
            num_attention_heads=mine.num_attention_heads,
            num_key_value_heads=mine.num_attention_heads,
            max_position_embeddings=max(self.ours.packing.max_length, 2048),
            pad_token_id=PAD,
            bos_token_id=SEP,
            eos_token_id=SEP,
            mask_token_id=MASK,
            tie_word_embeddings=True,
            attention_dropout=0.0,
        )


class EuroBertAsShipped(EuroBert):
    """The same, compiled, with the mask that transformers makes."""

    label = "HF EuroBERT, compiled, as it ships"
    own_mask = True
    rows_at_once = 16


class EuroBertEager(EuroBert):
    """The same, not compiled; transformers makes no mask then."""

    label = "HF EuroBERT, eager, as it ships"
    compiled = False
    own_mask = True
    rows_at_once = 32


class ModernBert(Peer):
    """transformers' ModernBERT at its base size (149M), our vocabulary size aside."""

    label = "HF ModernBERT-base 149M, helped"

    def config(self) -> Any:
        from transformers import ModernBertConfig

        return ModernBertConfig(
            vocab_size=self.ours.vocab_size,
            max_position_embeddings=max(self.ours.packing.max_length, 2048),
            pad_token_id=PAD,
            bos_token_id=SEP,
            eos_token_id=SEP,
            cls_token_id=1,
            sep_token_id=SEP,
        )

    def attended(self, config: Any, length: int) -> list[int]:
        window = min(length, config.local_attention)
        return [length if kind == "full_attention" else window for kind in config.layer_types]


PEERS = {
    "eurobert": EuroBert,
    "eurobert-as-shipped": EuroBertAsShipped,
    "eurobert-eager": EuroBertEager,
    "modernbert": ModernBert,
}
