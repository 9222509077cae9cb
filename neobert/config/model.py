"""The ``model`` section: the encoder's shape, and which kernels compute it.

The vocabulary is not a knob by default: it follows the tokenizer, padded to a multiple of 128 so that the output
projection fills whole tensor-core tiles. ``model.vocab_size`` overrides it, for a tokenizer that will grow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from neobert.config.schema import Bounds

VOCAB_MULTIPLE = 128


@dataclass(frozen=True)
class ModelConfig:
    """Shape, variants and kernels of the encoder."""

    hidden_size: Annotated[int, "Width of the residual stream.", Bounds(ge=8)] = 768
    num_hidden_layers: Annotated[int, "Number of transformer blocks.", Bounds(ge=1)] = 12
    num_attention_heads: Annotated[int, "Attention heads; each has hidden_size / heads channels.", Bounds(ge=1)] = 12
    intermediate_size: Annotated[
        int, "Feed-forward width; swiglu uses two thirds of it, rounded up to a multiple of 8.", Bounds(ge=8)
    ] = 3072
    max_position_embeddings: Annotated[int, "Longest segment, in tokens.", Bounds(ge=8)] = 4096
    vocab_size: Annotated[
        int | None, "Rows of the embedding table; null takes the tokenizer's size padded to 128.", Bounds(ge=8)
    ] = None
    hidden_act: Annotated[Literal["swiglu", "gelu"], "Feed-forward: gated SwiGLU, or two layers with GELU."] = "swiglu"
    rope: Annotated[bool, "Rotary positions; false learns a table (0 is padding, real positions start at 1)."] = True
    rope_theta: Annotated[float, "Base of the rotary frequencies.", Bounds(gt=1)] = 10000.0
    rms_norm: Annotated[bool, "RMSNorm; false takes LayerNorm with weight and bias."] = True
    norm_eps: Annotated[float, "Added to the mean square (or variance) before its root.", Bounds(gt=0)] = 1e-5
    dropout: Annotated[
        float,
        "Dropped share of embeddings and of each branch's output; never of attention weights.",
        Bounds(ge=0, lt=1),
    ] = 0.0
    tie_word_embeddings: Annotated[bool, "The masked-language-model decoder shares the embedding table."] = True
    decoder_bias: Annotated[bool, "Give the decoder a bias, as the published NeoBERT has; needs untied embeddings."] = (
        False
    )
    embedding_init_range: Annotated[float, "Embeddings start uniform in plus or minus this.", Bounds(gt=0)] = 0.02
    decoder_init_range: Annotated[float, "Linear layers start uniform in plus or minus this.", Bounds(gt=0)] = 0.02
    ngpt: Annotated[bool, "Normalised residual interpolation with learned scales (nGPT), instead of norms."] = False
    residual_fp32: Annotated[
        bool, "Under mixed precision keep the residual stream in fp32; false keeps it in bf16, which moves fewer bytes."
    ] = True
    attn_backend: Annotated[
        Literal["auto", "flash_attn_varlen", "sdpa"], "Attention kernel; auto is varlen on a capable GPU, else sdpa."
    ] = "auto"
    kernel_backend: Annotated[
        Literal["auto", "liger", "torch"], "Kernels of norm, SwiGLU, RoPE and cross-entropy; auto takes the fastest."
    ] = "auto"

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def mlp_size(self) -> int:
        """Inner width of the feed-forward as built: the 2/3 rule keeps SwiGLU's parameters equal to GELU's."""
        if self.hidden_act == "gelu":
            return self.intermediate_size
        return -(-int(2 * self.intermediate_size / 3) // 8) * 8

    def padded_vocab_size(self, tokenizer_size: int) -> int:
        """Rows of the embedding table for a tokenizer of ``tokenizer_size`` ids."""
        if self.vocab_size is not None:
            return self.vocab_size
        return -(-tokenizer_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def problems(self) -> Iterator[tuple[str, str]]:
        """Contradictions between keys of this section."""
        if self.hidden_size % self.num_attention_heads:
            yield "hidden_size", f"must be a multiple of num_attention_heads ({self.num_attention_heads})"
        elif self.head_dim % 2 and self.rope:
            yield "num_attention_heads", f"leaves {self.head_dim} channels a head; rope needs an even number"
        if self.decoder_bias and self.tie_word_embeddings:
            yield "decoder_bias", "needs tie_word_embeddings: false"
        if self.ngpt and self.hidden_act != "swiglu":
            yield "ngpt", "is defined for hidden_act: swiglu only"
        if self.ngpt and not self.residual_fp32:
            yield "residual_fp32", "must be true with ngpt: unit vectors need more than 8 bits"
        if self.ngpt and self.decoder_bias:
            yield "ngpt", "has no decoder bias; set decoder_bias: false"
