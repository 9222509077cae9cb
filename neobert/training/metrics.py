"""Figures of a training: FLOPs and MFU, and the history of a run on disk.

FLOPs count multiply-adds of the matrix products only, twice: forward
`T*L*(8H^2 + 2mHI) + 4*L*H*sum(len^2) + 2*M*H*V` with m = 3 matrices in a SwiGLU and 2 in a GELU block, training
three times that; equal to torch's FlopCounterMode. T tokens, L layers, I the rounded width, M predicted tokens.
"""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

from neobert.config.model import ModelConfig
from neobert.io import atomic_path, clear_write_errors

# Dense bf16 peaks without sparsity, in FLOP/s, by the device's model; first match wins.
# Sources: NVIDIA's data sheets of H200, H100, A100, L40S, L4, A10, B200, B100, RTX 4090, RTX 3090.
PEAK_FLOPS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("B200", 2250e12),
    ("B100", 1750e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)
# As drivers name devices: "NVIDIA A100-SXM4-80GB". Another word makes another device (L40, RTX 4090 D, a MIG slice).
DEVICE_NAME = r"(NVIDIA |GeForce )*{model}([ -](SXM\d?|PCI[eE]|\d+GB?|HBM\w+))*"


def train_flops(config: ModelConfig, vocab_size: int, tokens: int, squared_lengths: int, predicted: int) -> float:
    """FLOPs of forward and backward: T `tokens`, the sum of squared segment lengths, M `predicted` tokens."""
    layers, hidden = config.num_hidden_layers, config.hidden_size
    matrices = 3 if config.hidden_act == "swiglu" else 2
    linear = tokens * layers * (8 * hidden**2 + 2 * matrices * hidden * config.mlp_size)
    attention = 4 * layers * hidden * squared_lengths
    return 3.0 * (linear + attention + 2 * predicted * hidden * vocab_size)


def peak_flops(device_name: str | None) -> float | None:
    """Peak dense bf16 FLOP/s of a device, or None where the table does not know it (MFU is then null)."""
    for model, peak in PEAK_FLOPS:
        if re.fullmatch(DEVICE_NAME.format(model=model), device_name or ""):
            return peak
    return None


class JsonLines:
    """A file of JSON objects, one a line, appended as they come and written out at once: rows are rare.

    A last line that a kill or a full disk cut short is dropped on opening, else the next would be written onto its end.

    Raises:
        PipelineError: at any of its calls, the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with clear_write_errors(path):
            self._handle = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held until close
            if path.is_file():
                data = path.read_bytes()
                os.truncate(path, data.rfind(b"\n") + 1)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row."""
        with clear_write_errors(self.path):
            self._handle.write(json.dumps(row) + "\n")
            self._handle.flush()

    def sync(self) -> None:
        """Make the rows durable."""
        with clear_write_errors(self.path):
            os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Close the file; what a full disk has left unwritten is tried once more."""
        with clear_write_errors(self.path):
            self._handle.close()


class History:
    """A run's rows, in memory and on disk.

    A resumed run cuts what lies after its checkpoint, so that an interrupted run's history equals the undisturbed
    one's. A run from step 0 keeps nothing: if it evaluates before its first step, it does so again.
    """

    def __init__(self, path: Path, keep_to_step: int) -> None:
        self.rows = [row for row in read_rows(path) if row["step"] <= keep_to_step] if keep_to_step else []
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        self.lines = JsonLines(path)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row, and write it out."""
        self.rows.append(row)
        self.lines.append(row)

    def sync(self) -> None:
        """Make rows durable; called before a checkpoint that implies them is committed."""
        self.lines.sync()

    def close(self) -> None:
        """Close the file."""
        self.lines.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines; one that a kill, a full disk or a power loss cut short is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # rows after it are whole
            continue
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as CSV, columns in order of first appearance, empty where a row lacks one (for DVC plots)."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
