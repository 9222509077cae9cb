"""NeoBERT-style encoder for transformers 4 and 5: padded input, PyTorch's SDPA, nothing to install.

Every variant of the training model (RMSNorm or LayerNorm, SwiGLU or GELU, rotary or learned positions, nGPT) under the
training model's tensor names. Attention masks may be boolean, 0/1 integers or floats, or additive floats, of shape
[B, L], [B, 1 or L, L] or [B, 1, 1 or L, L]. Packed input is not supported.
Legend: B rows, L tokens a row, H width, N heads, D channels a head.
"""

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from .configuration_neobert import NeoBERTConfig

TRANSFORMERS = int(transformers.__version__.split(".")[0])
TIED = {"decoder.weight": "encoder.embeddings.weight"}


def keep_mask(attention_mask, input_ids):
    """Any accepted mask -> boolean [B, 1, 1 or L, L], True where a key may be seen.

    A float mask with a positive entry is 0/1, any other is additive, where what is below -1 is masked.
    """
    if attention_mask is None:
        return None
    mask = attention_mask.to(input_ids.device)
    mask = torch.where((mask > 0).any(), mask > 0, mask > -1) if mask.is_floating_point() else mask != 0
    while mask.dim() < 4:
        mask = mask.unsqueeze(1)
    return mask


def rotate(x, cos, sin):
    """Rotate-half RoPE of [B, N, L, D] by [B or 1, 1, L, D/2]."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def unit(x):
    """Length 1 along the last dimension; zero stays zero."""
    return F.normalize(x.float(), dim=-1).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.float()).to(x.dtype)


def make_norm(config):
    return (RMSNorm if config.rms_norm else nn.LayerNorm)(config.hidden_size, eps=config.norm_eps)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, angles, keep):
        return self.out(attend(self.qkv(x), self.heads, angles, keep))


def attend(qkv, heads, angles, keep, scale_qk=None):
    """Fused qkv [B, L, 3H] -> [B, L, H]; ``scale_qk`` [H] is nGPT's, with unit queries and keys."""
    rows, length, width = qkv.shape
    q, k, v = qkv.view(rows, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    if angles is not None:
        q, k = rotate(q, *angles), rotate(k, *angles)
    scale = q.shape[-1] ** -0.5
    if scale_qk is not None:
        by_head = scale_qk.view(heads, 1, -1).to(q.dtype)
        q, k, scale = unit(q) * by_head, unit(k) * by_head, q.shape[-1] ** 0.5
    bias = None
    if keep is not None:
        # The lowest number instead of -inf: a row that may see nothing stays finite.
        bias = torch.zeros_like(keep, dtype=q.dtype).masked_fill(~keep, torch.finfo(q.dtype).min)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return out.transpose(1, 2).reshape(rows, length, width // 3)


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gated = config.hidden_act == "swiglu"
        self.w1 = nn.Linear(config.hidden_size, config.inner_size, bias=False)
        if self.gated:
            self.w2 = nn.Linear(config.hidden_size, config.inner_size, bias=False)
        self.w3 = nn.Linear(config.inner_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.w3(F.silu(self.w1(x)) * self.w2(x) if self.gated else F.gelu(self.w1(x)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = FeedForward(config)

    def forward(self, x, angles, keep):
        x = x + self.attention(self.attention_norm(x), angles, keep)
        return x + self.mlp(self.mlp_norm(x))


class Scale(nn.Module):
    """nGPT's learned vector: ``weight * initial / stored``."""

    def __init__(self, size, initial, stored):
        super().__init__()
        self.ratio = initial / stored
        self.weight = nn.Parameter(torch.full((size,), stored))

    def forward(self):
        return self.weight * self.ratio


class NormalizedBlock(nn.Module):
    """nGPT, arXiv:2410.01131."""

    def __init__(self, config):
        super().__init__()
        hidden, inner = config.hidden_size, config.inner_size
        base = hidden**-0.5
        self.heads, self.gain = config.num_attention_heads, hidden**0.5
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.w1 = nn.Linear(hidden, inner, bias=False)
        self.w2 = nn.Linear(hidden, inner, bias=False)
        self.w3 = nn.Linear(inner, hidden, bias=False)
        self.s_qk = Scale(hidden, 1.0, base)
        self.alpha_attention, self.alpha_mlp = Scale(hidden, 0.05, base), Scale(hidden, 0.05, base)
        self.s_u, self.s_v = Scale(inner, 1.0, 1.0), Scale(inner, 1.0, 1.0)

    def forward(self, x, angles, keep):
        target = unit(self.out(attend(self.qkv(x), self.heads, angles, keep, self.s_qk())))
        x = unit(x + self.alpha_attention().abs() * (target - x))
        gate = self.w1(x) * (self.s_v() * self.gain)
        target = unit(self.w3(F.silu(gate) * (self.w2(x) * self.s_u())))
        return unit(x + self.alpha_mlp().abs() * (target - x))


class NeoBERTPreTrainedModel(PreTrainedModel):
    config_class = NeoBERTConfig
    base_model_prefix = "encoder"
    # The losses are means over their own batch and ignore ``num_items_in_batch``. Without this the Trainer takes
    # ``**kwargs`` for a promise to divide by it, and leaves out its own division by the accumulation steps.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _no_split_modules = ["Block", "NormalizedBlock"]  # noqa: RUF012

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(0.0, self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()


class NeoBERTModel(NeoBERTPreTrainedModel):
    """Token ids to hidden states [B, L, H]."""

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        if not config.rope:
            self.positions = nn.Embedding(config.max_position_embeddings + 1, config.hidden_size, padding_idx=0)
        block = NormalizedBlock if config.ngpt else Block
        self.layers = nn.ModuleList(block(config) for _ in range(config.num_hidden_layers))
        if not config.ngpt:
            self.norm = make_norm(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def set_input_embeddings(self, value):
        self.embeddings = value

    def angles(self, position_ids):
        """Cosine and sine [B or 1, 1, L, D/2]; no buffer, so that nothing can be lost or rounded in loading."""
        size = self.config.hidden_size // self.config.num_attention_heads
        exponents = torch.arange(0, size, 2, dtype=torch.float32, device=position_ids.device) / size
        angles = position_ids[..., None].float() / self.config.rope_theta**exponents
        return angles.cos()[:, None], angles.sin()[:, None]

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        output_hidden_states=None,
        return_dict=None,
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        keep = keep_mask(attention_mask, x)
        angles = None
        if self.config.rope:
            if position_ids is None:
                position_ids = torch.arange(x.shape[1], device=x.device)[None]
            angles = self.angles(position_ids)
        else:
            x = x + self.positions(self.learned_positions(input_ids, x, attention_mask, position_ids))
        if self.config.ngpt:
            x = unit(x)
        states = [x]
        for layer in self.layers:
            x = layer(x, angles, keep)
            states.append(x)
        x = x if self.config.ngpt else self.norm(x)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = BaseModelOutput(last_hidden_state=x, hidden_states=tuple(states) if output_hidden_states else None)
        return output if return_dict is not False else output.to_tuple()

    def learned_positions(self, input_ids, x, attention_mask, position_ids):
        """Rows of the position table [B, L]: 0 for padding, real tokens from 1; ``position_ids`` count from 0."""
        if input_ids is not None:
            real = input_ids != self.config.pad_token_id
        elif attention_mask is not None and attention_mask.dim() == 2:
            real = keep_mask(attention_mask, x)[:, 0, 0]
        else:
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if position_ids is None:
            return real.long().cumsum(1) * real
        return (position_ids + 1) * real


class NeoBERTForMaskedLM(NeoBERTPreTrainedModel):
    """Logits [B, L, V]."""

    _tied_weights_keys = TIED if TRANSFORMERS >= 5 else list(TIED)  # type: ignore[assignment]

    def __init__(self, config):
        super().__init__(config)
        self.encoder = NeoBERTModel(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        if config.ngpt:
            self.logit_scale = Scale(config.vocab_size, 1.0, config.hidden_size**-0.5)
        self.post_init()

    def get_output_embeddings(self):
        return self.decoder

    def set_output_embeddings(self, value):
        self.decoder = value

    def forward(self, input_ids=None, attention_mask=None, labels=None, return_dict=None, **kwargs):
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        logits = self.decoder(output.last_hidden_state)
        if self.config.ngpt:
            logits = logits * self.logit_scale()
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        output = MaskedLMOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)
        return output if return_dict is not False else output.to_tuple()


def classification_loss(config, logits, labels):
    """Mean squared error for one label, cross-entropy for class indices, binary cross-entropy for float targets."""
    if labels is None:
        return None
    if config.num_labels == 1:
        return F.mse_loss(logits.squeeze(-1).float(), labels.float())
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits.float(), labels)
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=-100)


class NeoBERTForSequenceClassification(NeoBERTPreTrainedModel):
    """Pool (``classifier_pooling``: mean or bos), dense, GELU, classify: [B, labels]."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.encoder = NeoBERTModel(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None, return_dict=None, **kwargs):
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        hidden = output.last_hidden_state
        if self.config.classifier_pooling == "bos":
            pooled = hidden[:, 0]
        elif attention_mask is None:
            pooled = hidden.mean(1)
        else:
            real = keep_mask(attention_mask, hidden)[:, 0, 0, :, None]
            pooled = (hidden * real).sum(1) / real.sum(1).clamp(min=1)
        logits = self.classifier(F.gelu(self.dense(pooled)))
        loss = classification_loss(self.config, logits, labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)
        return output if return_dict is not False else output.to_tuple()


class NeoBERTForTokenClassification(NeoBERTPreTrainedModel):
    """One linear layer on every token: [B, L, labels]."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.encoder = NeoBERTModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None, return_dict=None, **kwargs):
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        logits = self.classifier(output.last_hidden_state)
        loss = classification_loss(self.config, logits, labels)
        output = TokenClassifierOutput(loss=loss, logits=logits, hidden_states=output.hidden_states)
        return output if return_dict is not False else output.to_tuple()
