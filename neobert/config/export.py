"""Section ``export``: the directory that other tools load."""

from dataclasses import dataclass
from typing import Annotated, Literal

from neobert.config.schema import Bounds


@dataclass(frozen=True)
class ExportConfig:
    """Section ``export``."""

    format: Annotated[
        Literal["native", "neobert"],
        "native writes transformers' own EuroBERT classes, which need no remote code; neobert carries its modelling "
        "code with it, and is also what a model gets that the native classes cannot express.",
    ] = "native"
    dtype: Annotated[Literal["fp32", "bf16"], "Precision of the exported weights."] = "fp32"
    onnx: Annotated[bool, "Also write onnx/model.onnx (hidden states, fp32), checked with onnxruntime."] = False
    max_shard_size_mb: Annotated[int, "Weights are split into files of at most this many megabytes.", Bounds(ge=1)] = (
        5000
    )
    name: Annotated[str, "The model's name in its card."] = "neobert"
    license: Annotated[str | None, "Licence identifier such as apache-2.0; null writes none."] = None
    language: Annotated[str | None, "Language code such as en; null writes none."] = None
    hardware: Annotated[
        str | None,
        "For the card: what trained the model and how long, as '8 x H200, 120 GPU hours'; `make report` prints it.",
    ] = None
