"""The encoder: token ids of a flat stream to hidden states.

Pre-norm transformer of NeoBERT (arXiv:2502.19587): embeddings, N blocks of attention and feed-forward with residual
sums, a final norm. Legend: T tokens, S segments, H hidden size, D channels a head. What all layers share (angles,
segment layout, kernels) is decided once a forward. The residual stream has the weights' type, or with
``model.residual_fp32: false`` that of matrix products. Cost a token, forward:
``L x (8 H^2 + 6 H I) + 4 L H x sum(length^2) / T`` operations.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from neobert.config.model import ModelConfig
from neobert.model.attention import Attention
from neobert.model.init import initialise
from neobert.model.mlp import make_mlp
from neobert.model.ngpt import NormalizedBlock, normalize_weights, unit
from neobert.model.norm import make_norm
from neobert.model.plan import ForwardPlan, make_plan
from neobert.model.rope import RotaryEmbedding


class Block(nn.Module):
    """Pre-norm block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    The sum of the stream and the last branch is left to the next norm, which adds and normalises in one pass.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = make_mlp(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, branch: torch.Tensor | None, plan: ForwardPlan
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stream [T, H] and the branch [T, H] not yet added to it -> the same, one block later."""
        x, normed = self.attention_norm(x, branch, plan)
        x, normed = self.mlp_norm(x, self.dropout(self.attention(normed, plan)), plan)
        return x, self.dropout(self.mlp(normed, plan.kernels))


class Encoder(nn.Module):
    """Token ids to hidden states.

    Args:
        config: the ``model`` section.
        vocab_size: rows of the embedding table, at least the tokenizer's size.
        pad_token_id: its embedding is zero and stays zero.

    Set ``gradient_checkpointing = True`` to recompute each block in the backward (about 1.33x compute, one [T, H]
    tensor kept a layer).
    """

    def __init__(self, config: ModelConfig, vocab_size: int, pad_token_id: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.pad_token_id = config, vocab_size, pad_token_id
        self.gradient_checkpointing = False
        self.embeddings = nn.Embedding(vocab_size, config.hidden_size, padding_idx=pad_token_id)
        if config.rope:
            self.rotary = RotaryEmbedding(config.head_dim, config.rope_theta)
        else:
            # Row 0 is padding's; real positions start at 1, anew in each segment.
            self.positions = nn.Embedding(config.max_position_embeddings + 1, config.hidden_size, padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        block = NormalizedBlock if config.ngpt else Block
        self.layers = nn.ModuleList(block(config) for _ in range(config.num_hidden_layers))
        self.norm = None if config.ngpt else make_norm(config)
        initialise(self, config)
        if config.ngpt:
            normalize_weights(self)

    def embed(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """[T], [T] -> [T, H], with learned positions added where ``model.rope`` is false."""
        x = self.embeddings(input_ids)
        if not self.config.rope:
            x = x + self.positions((position_ids + 1) * (input_ids != self.pad_token_id))
        if self.config.ngpt:
            x = unit(x)
        return self.dropout(x)

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
    ) -> torch.Tensor:
        """[T] int64, [T] int64 (restarting at each segment), [S+1] int32, at least the longest segment -> [T, H].

        Raises:
            PipelineError: ``model.attn_backend`` names a kernel that this device cannot run.
        """
        x = self.embed(input_ids, position_ids)
        angles = self.rotary(position_ids) if self.config.rope else None
        plan = make_plan(self.config, x, cu_seqlens, max_seqlen, angles)
        if not self.config.residual_fp32:
            x = x.to(plan.dtype)
        branch = None
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x, branch = checkpoint(layer, x, branch, plan, use_reentrant=False)
            else:
                x, branch = layer(x, branch, plan)
        return x if self.norm is None else self.norm(x, branch, plan)[1]
