"""Peaks by the names that drivers give (unknown is null, never another device's), and histories on disk."""

import pytest

from neobert.errors import PipelineError
from neobert.training.metrics import History, JsonLines, peak_flops, read_rows


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GH200 144G HBM3e", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
    ],
)
def test_a_known_device_has_its_peak(name, peak):
    assert peak_flops(name) == peak


@pytest.mark.parametrize(
    "name",
    [
        None,
        "CPU",
        "NVIDIA L40",
        "NVIDIA RTX A1000",
        "NVIDIA GB200",
        "NVIDIA H200 NVL",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ],
)
def test_another_device_has_none(name):
    assert peak_flops(name) is None


def test_a_history_that_cannot_be_written_is_one_clear_error(tmp_path):
    """To the end: what could not be written is tried again when the file is closed."""
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    history = History(tmp_path / "history.jsonl", 0)
    history.lines.close()
    history.lines = JsonLines(full)
    for refused in (lambda: history.append({"step": 1}), history.sync, history.close):
        with pytest.raises(PipelineError, match=r"full: cannot be written \(.*\); free space"):
            refused()


def test_a_history_ends_at_bytes_that_are_no_text(tmp_path):
    (tmp_path / "history.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\x00')
    assert read_rows(tmp_path / "history.jsonl") == [{"step": 1}]
