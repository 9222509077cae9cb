"""Device hours of a model's trainings, over their interruptions."""

import json

import pytest

from neobert.training.hardware import spent
from tests.training import tiny


def rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("device", "devices", "seconds")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))


def test_hours_are_summed_over_devices_trainings_and_interruptions(tmp_path):
    rows(tmp_path / "a/throughput.jsonl", ("NVIDIA H200", 8, 1800), ("NVIDIA H200", 4, 1800))
    rows(tmp_path / "b/throughput.jsonl", ("NVIDIA H200", 1, 3600))
    rows(tmp_path / "b/embedding_warmup/throughput.jsonl", ("CPU", 2, 5400))
    assert spent([tmp_path / "a"]) == "8 x NVIDIA H200, 6.0 GPU hours"
    assert spent([tmp_path / "a", tmp_path / "b"]) == "2 x CPU, 3.0 hours; 8 x NVIDIA H200, 7.0 GPU hours"
    assert spent([tmp_path / "a", tmp_path / "elsewhere"]) is None  # a training of another host: the sum is not known
    assert spent([]) is None


def test_a_run_records_its_device_and_seconds_through_a_resume(tmp_path):
    tiny.run(tmp_path, {"max_steps": 4, "deterministic": False}, {"logging_steps": 4})
    tiny.run(tmp_path, None, {"logging_steps": 4, "resume_from_checkpoint": 4})
    found = [json.loads(line) for line in (tmp_path / "throughput.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == [4, 8, 12]
    assert {(row["device"], row["devices"]) for row in found} <= {("CPU", 1), (found[0]["device"], 1)}
    hours = sum(row["seconds"] for row in found) / 3600
    assert float(spent([tmp_path]).split(", ")[1].split()[0]) == pytest.approx(hours, abs=0.06)
