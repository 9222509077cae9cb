"""Refuse an export that is not the trained model: load it in a fresh process and judge the differences.

Limits: 1e-5 of the largest magnitude for everything computed in fp32 from fp32 weights; 3e-2 in norm for a bf16
forward, which is stated, not hidden. Weights exported in bf16 are rounded, so there all limits are the bf16 one.
"""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from neobert.errors import PipelineError
from neobert.export.probe import Probe
from neobert.io import read_json

log = logging.getLogger(__name__)

FP32_LIMIT, BF16_LIMIT = 1e-5, 3e-2
EXACT = ("classifier_rows", "tokenizer", "max_seq_length")


def validate(directory: Path, probe: Probe, dtype: str) -> dict[str, float]:
    """Differences by name between ``directory`` as public libraries load it and the training model.

    Raises:
        PipelineError: the directory does not load, or a difference is above its limit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "differences.json"
        command = [sys.executable, "-m", "neobert.export.check"]
        command += [str(p) for p in (directory, probe.tensors, probe.description, result)]
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HF_HUB_OFFLINE": "1",
            # Code that an export carries is cached by the directory's name, so each check has its own cache.
            "HF_MODULES_CACHE": scratch,
            "TRANSFORMERS_VERBOSITY": "error",
            "TOKENIZERS_PARALLELISM": "false",
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0 or not result.is_file():
            raise PipelineError(f"{directory}: does not load in a fresh process:\n{done.stderr[-2000:]}")
        found: dict[str, float] = read_json(result)
    judge(directory, found, dtype)
    return found


def judge(directory: Path, found: dict[str, float], dtype: str) -> None:
    """Compare differences with their limits.

    Raises:
        PipelineError: one is above its limit (or not a number).
    """
    wrong = {name: value for name, value in found.items() if not value <= limit(name, dtype)}
    for name, value in found.items():
        log.info("export: %s differs by %.1e (limit %.0e)", name, value, limit(name, dtype))
    if wrong:
        listed = ", ".join(f"{name} by {value:.2e}" for name, value in wrong.items())
        raise PipelineError(f"{directory}: differs from the trained model: {listed}; this is a bug in the export")


def limit(name: str, dtype: str) -> float:
    """The largest accepted difference of one check."""
    if name in EXACT:
        return 0.0
    return BF16_LIMIT if dtype == "bf16" or "bf16" in name else FP32_LIMIT
