"""ONNX: ids and 0/1 mask to hidden states, rows and lengths free.

Traced from the exported modelling code, whichever format the weights take, and put where sentence-transformers looks
for it (``onnx/model.onnx``). fp32. Cost: one copy of the weights and one traced forward.
"""

import importlib.util
import warnings
from pathlib import Path

import torch

from neobert.errors import PipelineError
from neobert.export.custom import custom_model
from neobert.model.storage import ModelInfo

ONNX_FILE = "onnx/model.onnx"
OPSET = 17


class _HiddenStates(torch.nn.Module):
    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def write_onnx(target: Path, state: dict[str, torch.Tensor], info: ModelInfo) -> None:
    """Write ``onnx/model.onnx`` below ``target``.

    Raises:
        PipelineError: the packages onnx and onnxruntime, which write and check it, are not installed.
    """
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise PipelineError(f"export.onnx: true needs the package {package}; pip install it, or set it to false")
    path = target / ONNX_FILE
    path.parent.mkdir()
    free = {0: "rows", 1: "length"}
    ids = torch.full((2, 8), info.mask_token_id)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    with warnings.catch_warnings():
        # The tracer warns of Python integers in shapes; the check at other shapes is what decides.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _HiddenStates(custom_model(state, info, "mean").encoder),
            (ids, mask),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state"],
            dynamic_axes={"input_ids": free, "attention_mask": free, "last_hidden_state": free},
            opset_version=OPSET,
            dynamo=False,  # the newer exporter needs onnxscript, and gains this graph nothing
        )
