"""Section ``tokenizer``: train one on the corpus, or load one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from neobert.config.schema import Bounds


@dataclass(frozen=True)
class TokenizerConfig:
    name_or_path: Annotated[
        str | None, "Load this tokenizer (a local folder or a hub name) instead of training one; null trains."
    ] = None
    algorithm: Annotated[Literal["wordpiece", "bpe"], "What to train: WordPiece, or byte-level BPE."] = "wordpiece"
    vocab_size: Annotated[
        int, "Largest vocabulary to train; a small corpus may yield fewer (the model pads to 128).", Bounds(ge=300)
    ] = 16_384
    min_frequency: Annotated[int, "Occurrences that a merge needs.", Bounds(ge=1)] = 2
    lowercase: Annotated[bool, "Lower-case text before tokenizing."] = True
    strip_accents: Annotated[bool, "Remove accents before tokenizing."] = False
    split_identifiers: Annotated[
        bool, "Split identifiers of source code into words: `maxPool_size` reads `max pool size`."
    ] = True
    training_characters: Annotated[
        int, "Characters of the corpus to train on, taken evenly from its shards.", Bounds(ge=1000)
    ] = 20_000_000

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.name_or_path is not None and not self.name_or_path.strip():
            yield "name_or_path", "must be a folder or a hub name, or null to train a tokenizer"
        if self.algorithm == "bpe" and self.strip_accents:
            yield "strip_accents", "is of WordPiece's normalizer; byte-level BPE keeps text reversible"
