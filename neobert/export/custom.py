"""Our weights with their own modelling code, for what transformers' native classes cannot express.

The exported directory carries two source files, copied from ``neobert/export/remote``, which ``auto_map`` names; tensor
names are the training model's. Loading needs ``trust_remote_code=True``. Cost: one copy of the weights.
"""

import shutil
from pathlib import Path

import torch

from neobert.export.remote import modeling_neobert
from neobert.export.remote.configuration_neobert import NeoBERTConfig
from neobert.export.remote.modeling_neobert import NeoBERTForMaskedLM
from neobert.model.storage import ModelInfo

SOURCES = ("configuration_neobert.py", "modeling_neobert.py")
AUTO_MAP = {
    "AutoConfig": "configuration_neobert.NeoBERTConfig",
    "AutoModel": "modeling_neobert.NeoBERTModel",
    "AutoModelForMaskedLM": "modeling_neobert.NeoBERTForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_neobert.NeoBERTForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_neobert.NeoBERTForTokenClassification",
}


def custom_config(info: ModelInfo, classifier_pooling: str) -> NeoBERTConfig:
    """The exported configuration of this model."""
    model = info.model
    return NeoBERTConfig(
        vocab_size=info.vocab_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        inner_size=model.mlp_size,
        max_position_embeddings=model.max_position_embeddings,
        hidden_act=model.hidden_act,
        rope=model.rope,
        rope_theta=model.rope_theta,
        rms_norm=model.rms_norm,
        norm_eps=model.norm_eps,
        ngpt=model.ngpt,
        decoder_bias=model.decoder_bias,
        tie_word_embeddings=model.tie_word_embeddings,
        classifier_pooling=classifier_pooling,
        pad_token_id=info.pad_token_id,
        bos_token_id=info.cls_token_id,
        eos_token_id=info.sep_token_id,
        mask_token_id=info.mask_token_id,
        auto_map=AUTO_MAP,
    )


def custom_model(state: dict[str, torch.Tensor], info: ModelInfo, classifier_pooling: str) -> NeoBERTForMaskedLM:
    """The exported masked-language model holding these weights, in fp32 on the CPU."""
    model = NeoBERTForMaskedLM(custom_config(info, classifier_pooling))
    model.load_state_dict(state, strict=True)
    return model.eval()


def write_code(target: Path) -> None:
    """Copy the modelling code into an exported directory."""
    source = Path(modeling_neobert.__file__).parent
    for name in SOURCES:
        shutil.copyfile(source / name, target / name)
