"""Section ``pseudo_perplexity``: how well a masked language model predicts each token of held-out text."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from neobert.config.schema import Bounds


@dataclass(frozen=True)
class PseudoPerplexityConfig:
    """Section ``pseudo_perplexity`` (an optional stage)."""

    pretrained_model_path: Annotated[
        str, "The model directory, of this pipeline or Hugging Face's, that is measured."
    ] = "models/long_context"
    dataset_path: Annotated[
        str, "Held-out text: a directory of Parquet shards, or one .parquet, .jsonl or .txt file (a document a line)."
    ] = "data/corpus/validation"
    text_column: Annotated[str, "The column of the text."] = "text"
    num_documents: Annotated[int, "Documents measured, drawn evenly from each class of lengths.", Bounds(ge=1)] = 200
    max_length: Annotated[
        int | None, "Tokens of a document that are read; null takes what the model allows.", Bounds(ge=3)
    ] = None
    length_bins: Annotated[
        list[int], "Upper bounds, in tokens, of the classes of lengths in the report; longer documents form the last."
    ] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    tokens_per_batch: Annotated[int, "Tokens of a forward; its memory is proportional to it.", Bounds(ge=8)] = 16_384
    mixed_precision: Annotated[Literal["no", "bf16"], "Precision of the forward."] = "no"

    def problems(self) -> Iterator[tuple[str, str]]:
        if any(a >= b for a, b in zip([0, *self.length_bins], self.length_bins, strict=False)):
            yield "length_bins", "must rise, from 1 on"
