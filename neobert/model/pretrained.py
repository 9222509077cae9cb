"""The model that a training starts from: a model directory of ours, or a Hugging Face directory (``importers``).

Weights are compared key by key, and the model must have been trained with the tokenizer that the pipeline's data are
made with: its tokens are compared, and what both make of a text that is hard to split. Nothing is written, so ranks
need not wait for one another. Cost: one read of the weights on each rank.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from neobert.errors import PipelineError
from neobert.io import read_json, sha256_file
from neobert.model.heads import MaskedLM
from neobert.model.importers import convert
from neobert.model.storage import CONFIG, TIED, TOKENIZER, ModelInfo, load_model, load_weights

log = logging.getLogger(__name__)
ROLES = {"pad": "pad", "cls": "bos", "sep": "eos", "mask": "mask", "unk": "pad"}
"""The special tokens that the encoder names, each with the one that serves where a tokenizer has none of that name."""
PROBE = (
    "Hello, WORLD! na\u00efve caf\u00e9 camelCase snake_case 3.14159 \u65e5\u672c\u8a9e \u0444\u044b\u0432\n\t  done."
)
"""A text on which tokenizers of one vocabulary and other rules (case, accents, splitting) part."""


def open_pretrained(key: str, source: str | Path, tokenizer_dir: Path) -> tuple[MaskedLM, ModelInfo]:
    """The masked language model of a directory, on the CPU in fp32, and its description under the pipeline's tokenizer.

    Token weights and pooling of an embedding model are left behind: the training that starts here sets its own.

    Args:
        key: the dotted key that named ``source``, for messages.
        source: a model directory of ours, or a Hugging Face directory with ``config.json`` and safetensors.
        tokenizer_dir: the pipeline's tokenizer, which must read text as the model's own does.

    Raises:
        PipelineError: no directory, an unknown layout, a part that our encoder lacks, weights that are missing, left
            over or pickled, or another tokenizer.
    """
    source = Path(source)
    name = f"{key}: {source}"
    if (source / CONFIG).is_file():
        model, info, _ = load_model(source)
        ids = tokenizer_facts(name, own_tokenizer(source), info.vocab_size, tokenizer_dir)
        return model, dataclasses.replace(info, **ids, embedding=None)
    config, state, max_length, kind = convert(source, name)
    assert config.vocab_size is not None
    ids = tokenizer_facts(name, source, config.vocab_size, tokenizer_dir)
    info = ModelInfo(model=config, vocab_size=config.vocab_size, max_length=max_length, **ids)
    model = MaskedLM(config, info.vocab_size, info.pad_token_id)
    load_weights(model, state, allow_missing=(TIED,) if config.tie_word_embeddings else (), what=name)
    log.info(
        "%s is a %s model, not the one that params.yaml describes: %d layers x %d, %d heads, vocabulary %d, up to %d "
        "tokens",
        *(name, kind, config.num_hidden_layers, config.hidden_size, config.num_attention_heads),
        *(config.vocab_size, max_length),
    )
    return model, info


def own_tokenizer(source: Path) -> Path:
    """Where a model directory of ours, or a Hugging Face directory, keeps its tokenizer."""
    return source / TOKENIZER if (source / CONFIG).is_file() else source


def tokenizer_facts(name: str, theirs: Path, vocab_size: int, ours: Path) -> dict[str, Any]:
    """Special ids and hash of the pipeline's tokenizer ``ours``, once it is known to read text as the model's own.

    Raises:
        PipelineError: ``theirs`` gives a token another id or splits text otherwise, or an id is beyond the table.
    """
    sha256, mine = sha256_file(ours / "tokenizer.json"), Tokenizer.from_file(str(ours / "tokenizer.json"))
    vocabulary = mine.get_vocab(with_added_tokens=True)
    file = theirs / "tokenizer.json"
    if not file.is_file():
        log.warning("%s has no tokenizer.json; that it was trained with %s is taken on trust", name, ours)
    elif sha256_file(file) != sha256:
        other = Tokenizer.from_file(str(file))
        difference = "has another vocabulary than" if other.get_vocab(with_added_tokens=True) != vocabulary else None
        if difference is None and _ids(other) != _ids(mine):
            difference = "splits text otherwise than"
        if difference:
            raise PipelineError(
                f"{name} {difference} {ours}: a model reads only what its own tokenizer makes; set "
                f"tokenizer.name_or_path to {theirs}"
            )
    if max(vocabulary.values()) >= vocab_size:
        raise PipelineError(
            f"{name} has {vocab_size} embeddings, fewer than the {max(vocabulary.values()) + 1} ids of {ours}; set "
            "tokenizer.name_or_path to the model's own tokenizer"
        )
    named = read_json(ours / "tokenizer_config.json")
    ids = {}
    for role, instead in ROLES.items():
        token = named.get(f"{role}_token") or named.get(f"{instead}_token")
        if token is None:
            raise PipelineError(f"{ours}: the tokenizer has no {role} token, which training needs")
        ids[f"{role}_token_id"] = vocabulary[token if isinstance(token, str) else token["content"]]
    return {**ids, "tokenizer_sha256": sha256}


def _ids(tokenizer: Tokenizer) -> list[int]:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer.encode(PROBE, add_special_tokens=False).ids
