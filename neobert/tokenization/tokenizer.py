"""Make, check, save and open the pipeline's tokenizer: a folder that ``transformers.AutoTokenizer`` loads.

Cost: opening takes milliseconds with ``tokenizers`` alone; ``transformers`` is imported only to load and to save.
"""

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from neobert.errors import PipelineError
from neobert.io import read_json, sha256_file
from neobert.network import probe_hub

log = logging.getLogger(__name__)
PROBE = "a"
ROLES = ("pad", "unk", "cls", "sep", "mask")


@dataclass(frozen=True)
class TokenizerInfo:
    """What shards and models must agree on."""

    vocab_size: int
    pad_token_id: int
    unk_token_id: int
    cls_token_id: int
    sep_token_id: int
    mask_token_id: int
    sha256: str  # of tokenizer.json

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def save_tokenizer(tokenizer: Tokenizer, directory: Path, special_tokens: dict[str, str]) -> None:
    """Write ``tokenizer`` as ``transformers`` saves a fast tokenizer.

    Args:
        special_tokens: the special tokens by transformers' names (``mask_token``: ``[MASK]``).
    """
    from transformers import PreTrainedTokenizerFast

    # Segment ids are none of this encoder's inputs, so tokenizing must not yield them.
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **special_tokens).save_pretrained(
        directory
    )


def load_pretrained(name_or_path: str, directory: Path) -> None:
    """Load a tokenizer by folder or hub name and save it into ``directory``.

    One that does not put cls and sep around a text, as packing does around every segment, is made to: fine-tuning and
    the exported model would feed the encoder what it never saw.

    Raises:
        PipelineError: it cannot be loaded, is not a fast tokenizer, or lacks a special token.
    """
    from transformers import AutoTokenizer

    if not os.path.isdir(name_or_path) and not os.environ.get("HF_HUB_OFFLINE"):
        probe_hub(f"tokenizer.name_or_path: {name_or_path!r}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, use_fast=True, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds; every one is about this key
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PipelineError(f"tokenizer.name_or_path: {name_or_path!r} cannot be loaded: {first_line}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise PipelineError(
            f"tokenizer.name_or_path: {name_or_path!r} has no tokenizer.json (a fast tokenizer is needed)"
        )
    # Some models name their first and last token bos and eos (EuroBERT); an encoder's cls and sep are just those.
    for role, instead in (("cls", "bos"), ("sep", "eos")):
        if getattr(tokenizer, f"{role}_token") is None:
            setattr(tokenizer, f"{role}_token", getattr(tokenizer, f"{instead}_token"))
    missing = [role for role in ROLES if getattr(tokenizer, f"{role}_token") is None and role != "unk"]
    if missing:
        raise PipelineError(
            f"tokenizer.name_or_path: {name_or_path!r} has no {', '.join(missing)} token; an encoder needs "
            "pad, cls, sep and mask: add them (tokenizer.add_special_tokens) and save it, or train one"
        )
    if _surrounds(tokenizer.backend_tokenizer, tokenizer.cls_token, tokenizer.sep_token):
        tokenizer.save_pretrained(directory)
        return
    log.warning(
        "tokenizer.name_or_path: %r does not put %s and %s around a text, as packing does: the copy saved here has a "
        "post-processor that does",
        name_or_path,
        tokenizer.cls_token,
        tokenizer.sep_token,
    )
    surround(tokenizer.backend_tokenizer, tokenizer.cls_token, tokenizer.sep_token)
    # As transformers' general class: one of a model (Llama's) may make its own post-processor again when it loads.
    tokens = {f"{role}_token": getattr(tokenizer, f"{role}_token") for role in ROLES}
    save_tokenizer(tokenizer.backend_tokenizer, directory, {name: token for name, token in tokens.items() if token})


def surround(tokenizer: Tokenizer, cls: str, sep: str) -> None:
    """Have ``tokenizer`` put ``cls`` and ``sep`` around a text, and ``sep`` between two."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep],
        pair=[cls, "$A", sep, "$B:1", f"{sep}:1"],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )


def _surrounds(tokenizer: Tokenizer, cls: str, sep: str) -> bool:
    """Whether ``tokenizer`` does so on its own; also where one is no token of it, which ``open_tokenizer`` refuses."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy: padding and truncation would hide the ends
    tokenizer.no_padding()
    tokenizer.no_truncation()
    first, last = tokenizer.token_to_id(cls), tokenizer.token_to_id(sep)
    if first is None or last is None:
        return True
    return tokenizer.encode(PROBE).ids == [first, *tokenizer.encode(PROBE, add_special_tokens=False).ids, last]


def open_tokenizer(directory: str | Path) -> tuple[Tokenizer, TokenizerInfo]:
    """Open a saved tokenizer without ``transformers``.

    Returns:
        The Rust tokenizer, without truncation or padding, and its ids.

    Raises:
        PipelineError: files are missing, or a special token is.
    """
    directory = Path(directory)
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise PipelineError(f"{path}: does not exist; run `dvc repro tokenizer`, or point to a fast tokenizer's folder")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    names = _special_tokens(directory)
    ids = {role: tokenizer.token_to_id(names[role]) if role in names else None for role in ROLES}
    missing = [role for role, id_ in ids.items() if id_ is None and role != "unk"]
    if missing:
        raise PipelineError(f"{directory}: the tokenizer has no {', '.join(missing)} token, which training needs")
    # A byte-level tokenizer may have no unknown token: nothing is unknown to it.
    known = {f"{role}_token_id": id_ if id_ is not None else ids["pad"] for role, id_ in ids.items()}
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    info = TokenizerInfo(vocab_size=size, sha256=sha256_file(path), **known)  # type: ignore[arg-type]
    return tokenizer, info


def _special_tokens(directory: Path) -> dict[str, str]:
    """Special tokens by role, from the files that transformers writes (4 and 5 differ in where)."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / name
        values = read_json(path) if path.is_file() else {}
        for role in ROLES:
            value = values.get(f"{role}_token")
            value = value.get("content") if isinstance(value, dict) else value
            if value is not None:
                found.setdefault(role, value)
    return found
