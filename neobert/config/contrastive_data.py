"""Section ``contrastive_data``: where the training pairs come from and what a valid pair is."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from neobert.config.schema import Bounds

HUB_NAMES = (
    "ALLNLI",
    "AMAZONQA",
    "CONCURRENTQA",
    "FEVER",
    "GITHUBISSUE",
    "GOOAQ",
    "MSMARCO",
    "PAQ",
    "PUBMEDQA",
    "QQP",
    "SENTENCECOMP",
    "STACKEXCHANGE",
    "STACKOVERFLOW",
    "STS12",
    "STSBENCHMARK",
    "TRIVIAQA",
    "WIKIHOW",
)
"""The documents' sources; their tables and columns are in ``neobert.contrastive.hub_sources``."""


@dataclass(frozen=True)
class PairSource:
    """One source of pairs: where its rows are, and which of their columns are query, positive and negatives.

    A column is written as a path into the row: ``question``, ``answers[0].text`` (field of an element),
    ``bad[*].text`` (that field of every element).
    """

    path: Annotated[str | None, "JSONL or Parquet file, or a glob of them, relative to the project's root."] = None
    hub: Annotated[
        str | None,
        "Instead of path: one of the documents' sources (ALLNLI, GOOAQ, ...), whose rules are known, or a data set by "
        "its hub name.",
    ] = None
    config: Annotated[str | None, "Configuration of a data set given by its hub name."] = None
    split: Annotated[str, "Split of a data set given by its hub name."] = "train"
    query: Annotated[str, "Column of the query: a string, or a list of equivalent strings."] = "query"
    corpus: Annotated[str, "Column of the positive: a string, or a list of positives."] = "corpus"
    negative: Annotated[
        str | list[str] | None, "Column of the hard negatives (string or list of strings), or a list of columns."
    ] = None
    kind: Annotated[str | None, "Column that splits the source into kinds; a batch holds one kind."] = None
    label: Annotated[
        str | None,
        "Column of a row's class (string or integer): pairs of one class are positives of each other, for "
        "contrastive.loss supcon, and never each other's negatives. Null: its query is a pair's class.",
    ] = None
    score: Annotated[str | None, "Column of a similarity score, for scored pairs."] = None
    min_score: Annotated[float | None, "Pairs that score below it are left out; needs `score`."] = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.path is None) == (self.hub is None):
            yield "path", "and hub: a source has exactly one of them"
        known = self.hub is not None and "/" not in self.hub
        if known and dataclasses.replace(self, hub=None) != PairSource():
            yield "hub", "is one of the documents' sources, whose columns are known; leave the other keys out"
        if known and self.hub not in HUB_NAMES:
            yield "hub", f"is neither owner/name nor one of {', '.join(HUB_NAMES)}"
        if self.path is not None and (self.config is not None or self.split != "train"):
            yield "config", "and split belong to hub"
        if (self.score is None) != (self.min_score is None):
            yield "min_score", "and score are given together or not at all"


@dataclass(frozen=True)
class Prompts:
    """Text put before every query and every document, in training, in the exported model and in evaluation."""

    query: Annotated[str, "Put before a query."] = ""
    document: Annotated[str, "Put before a document."] = ""


@dataclass(frozen=True)
class MiningConfig:
    """Hard negatives found by a retriever among the other pairs' documents of the same source and kind."""

    method: Annotated[Literal["bm25", "encoder"], "Rank documents by BM25, or by an embedding model."] = "bm25"
    model: Annotated[
        str | None,
        "Model directory of the encoder, below data/raw (where DVC tracks it): a copy of models/contrastive.",
    ] = None
    num_negatives: Annotated[int, "Pairs with fewer negatives get more, up to this many.", Bounds(ge=1)] = 4
    range_min: Annotated[int, "Ranks before this one are passed over.", Bounds(ge=0)] = 0
    range_max: Annotated[int, "Ranks from this one on are not looked at.", Bounds(ge=1)] = 50
    relative_margin: Annotated[
        float | None,
        "Pass over documents that score above (1 - this) of the positive's score; null takes them too.",
        Bounds(ge=0, lt=1),
    ] = 0.05

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.method == "encoder") != (self.model is not None):
            yield "model", f"belongs to method encoder, and that needs it; method is {self.method}"
        elif self.model is not None and not self.model.startswith("data/raw/"):
            yield "model", "must lie below data/raw, so that DVC sees when it changes"
        if self.range_max <= self.range_min:
            yield "range_max", f"must be more than range_min ({self.range_min})"


def _embedded() -> dict[str, PairSource]:
    return {"embedded": PairSource(path="data/embedded/pairs.parquet", kind="kind")}


@dataclass(frozen=True)
class ContrastiveDataConfig:
    """Training pairs: sources, validity, lengths, held-out part."""

    sources: Annotated[dict[str, PairSource], "Sources of pairs by name."] = field(default_factory=_embedded)
    max_query_length: Annotated[int, "Tokens a query is cut to, special tokens included.", Bounds(ge=4)] = 64
    max_document_length: Annotated[int, "Tokens a document is cut to, special tokens included.", Bounds(ge=4)] = 256
    min_characters: Annotated[int, "Shorter texts are bad rows.", Bounds(ge=1)] = 2
    max_characters: Annotated[int, "Longer texts are bad rows.", Bounds(ge=1)] = 200_000
    max_bad_fraction: Annotated[
        float, "Share of a source's rows that may be bad before the stage fails.", Bounds(ge=0, le=1)
    ] = 0.01
    validation_fraction: Annotated[float, "Share of the pairs held out for validation.", Bounds(ge=0, lt=1)] = 0.02
    max_validation_pairs: Annotated[int, "At most so many pairs are held out.", Bounds(ge=0)] = 2000
    decontaminate: Annotated[
        list[str], "Directories of evaluation sets; a pair with a text that occurs there is dropped."
    ] = field(default_factory=lambda: ["data/embedded/tasks"])
    mine_negatives: Annotated[MiningConfig | None, "Find hard negatives for the training pairs; null does not."] = None
    prompts: Annotated[Prompts, "Prompts of the embedding model."] = Prompts()

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.sources:
            yield "sources", "must name at least one source"
        if self.max_characters < self.min_characters:
            yield "max_characters", f"must be at least min_characters ({self.min_characters})"
