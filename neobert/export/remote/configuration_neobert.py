"""Configuration of a NeoBERT-style encoder, for transformers 4 and 5."""

from transformers import PretrainedConfig


class NeoBERTConfig(PretrainedConfig):
    """Shape and variants; ``inner_size`` is the feed-forward's width as built, ``ngpt`` the normalised variant."""

    model_type = "neobert_pipeline"

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        inner_size: int = 2048,
        max_position_embeddings: int = 4096,
        hidden_act: str = "swiglu",
        rope: bool = True,
        rope_theta: float = 10000.0,
        rms_norm: bool = True,
        norm_eps: float = 1e-5,
        ngpt: bool = False,
        decoder_bias: bool = False,
        initializer_range: float = 0.02,
        classifier_pooling: str = "mean",
        pad_token_id: int = 0,
        tie_word_embeddings: bool = True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.inner_size = inner_size
        self.max_position_embeddings = max_position_embeddings
        self.hidden_act = hidden_act
        self.rope = rope
        self.rope_theta = rope_theta
        self.rms_norm = rms_norm
        self.norm_eps = norm_eps
        self.ngpt = ngpt
        self.decoder_bias = decoder_bias
        self.initializer_range = initializer_range
        self.classifier_pooling = classifier_pooling
        super().__init__(**{**kwargs, "pad_token_id": pad_token_id, "tie_word_embeddings": tie_word_embeddings})
