"""Other encoders' training steps, on the same rows: transformers' EuroBERT of the same dimensions, and ModernBERT-base.

Both as their users run them: sdpa, bf16 autocast, torch.compile, fused AdamW, clipping, full logits, and rows as dense
[rows, length] input whose every token counts in tokens/s. They attend over whole rows, since transformers' sdpa
knows no packing; their FLOPs are counted so.

One thing is done for them. Under torch.compile, transformers 5.17 makes a mask of ones where there is no padding, in a
layout that sdpa's fast kernels refuse; what remains materialises all scores, and 64 rows of 1024 tokens do not fit
beside anything on a GPU of 140 GB. Rows are full here, so no mask is needed, and none is given.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.subject import ROWS, Timed, TrainerStep
from benchmarks.synthetic import MASK, PAD, SEP

BATCHES = 8
"""Batches kept on the device and reused in turn: peers are spared the cost of loading."""


class Peer(Timed):
    """A transformers model with a masked-language-model head, trained on `ours`' rows."""

    label = ""

    def __init__(self, ours: TrainerStep) -> None:
        self.ours = ours
        super().__init__(f"{self.label}, compiled, sdpa")

    def config(self) -> Any:
        """The model's configuration."""
        raise NotImplementedError

    def build(self) -> None:
        """Model, optimizer and a few batches on the device."""
        from transformers import AutoModelForMaskedLM

        device = self.ours.train_step.workers.device
        config = self.config()
        model = AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa").to(device).train()
        sys.modules[type(model).__module__].create_bidirectional_mask = lambda **_: None  # type: ignore[attr-defined]
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.compiled = torch.compile(model) if self.ours.trainer.torch_compile else model
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

    def step(self) -> None:
        """Forward with full logits, backward, clipping and update."""
        ids, labels = self.batches[self.turn % len(self.batches)]
        self.turn += 1
        trainer = self.ours.trainer
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=trainer.mixed_precision == "bf16"):
            loss = self.compiled(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class EuroBert(Peer):
    """transformers' EuroBERT with our dimensions."""

    label = "HF EuroBERT, same dimensions"

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


class ModernBert(Peer):
    """transformers' ModernBERT at its base size (149M), our vocabulary size aside."""

    label = "HF ModernBERT-base 149M"

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
