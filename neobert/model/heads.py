"""What stands on the encoder: masked-language model, sequence classifier, token classifier.

Shapes as in ``neobert.model.encoder``; V vocabulary, C labels. The classifiers have the layers of transformers'
EuroBERT classes, so that both export by renaming. Training never calls ``MaskedLM.forward`` on a long batch: the
objective decodes masked positions only, through ``logits``.
"""

import torch
import torch.nn.functional as F
from torch import nn

from neobert.config.model import ModelConfig
from neobert.model.encoder import Encoder
from neobert.model.init import initialise
from neobert.model.ngpt import Scale, normalize_weights
from neobert.model.pooling import pool


class MaskedLM(nn.Module):
    """Encoder and decoder; the decoder is bias-free and shares the embedding table unless configured otherwise."""

    def __init__(self, config: ModelConfig, vocab_size: int, pad_token_id: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, vocab_size, pad_token_id)
        tied = config.tie_word_embeddings
        self.decoder = nn.Linear(
            config.hidden_size, vocab_size, bias=config.decoder_bias, device="meta" if tied else None
        )
        if tied:
            self.decoder.weight = self.encoder.embeddings.weight
        else:
            initialise(self.decoder, config)
        if config.ngpt:
            self.logit_scale = Scale(vocab_size, 1.0, config.hidden_size**-0.5)
            normalize_weights(self)

    def output_projection(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(weight [V, H], bias [V] or None) whose linear map gives the logits, nGPT's scale included."""
        weight = self.decoder.weight
        if self.config.ngpt:
            weight = weight * self.logit_scale()[:, None]
        return weight, self.decoder.bias

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [M, H] -> logits [M, V]."""
        return F.linear(hidden, *self.output_projection())

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        """Logits of every token, [T, V]."""
        return self.logits(self.encoder(input_ids, position_ids, cu_seqlens, max_seqlen))


class SequenceClassifier(nn.Module):
    """Pool, dense, GELU, classify: one row of logits a segment."""

    def __init__(self, encoder: Encoder, num_labels: int, pooling: str = "mean", dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        hidden = encoder.config.hidden_size
        self.dense = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, num_labels)
        for layer in (self.dense, self.classifier):
            initialise(layer, encoder.config)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        num_segments: int,
    ) -> torch.Tensor:
        """Logits [num_segments, C]."""
        hidden = self.encoder(input_ids, position_ids, cu_seqlens, max_seqlen)
        pooled = pool(hidden, cu_seqlens, num_segments, self.pooling)
        return self.classifier(self.dropout(F.gelu(self.dense(pooled))))


class TokenClassifier(nn.Module):
    """One linear layer on every token."""

    def __init__(self, encoder: Encoder, num_labels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(encoder.config.hidden_size, num_labels)
        initialise(self.classifier, encoder.config)

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        """Logits [T, C]."""
        return self.classifier(self.dropout(self.encoder(input_ids, position_ids, cu_seqlens, max_seqlen)))
