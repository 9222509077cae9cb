"""Tokenizer files that transformers 4 and 5 both load.

transformers 5 writes class names that 4 does not know, so ``tokenizer.json`` is copied as it is and the configuration
beside it is written here under the class name that both resolve. Token type ids are left out: the encoder has none.
"""

import shutil
from pathlib import Path

from neobert.io import read_json, write_json
from neobert.model.storage import ModelInfo

SPECIAL_TOKENS = ("pad_token", "cls_token", "sep_token", "mask_token", "unk_token", "bos_token", "eos_token")


def write_tokenizer(source: Path, target: Path, info: ModelInfo) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``special_tokens_map.json`` into ``target``."""
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    given = read_json(source / "tokenizer_config.json")
    special = {name: _text(given[name]) for name in SPECIAL_TOKENS if given.get(name) is not None}
    write_json(target / "special_tokens_map.json", special)
    write_json(
        target / "tokenizer_config.json",
        {
            **special,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": info.max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
        },
    )


def _text(token: str | dict) -> str:
    return token if isinstance(token, str) else token["content"]
