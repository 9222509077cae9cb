"""Device hours of a model's trainings, over their interruptions, and the lines that they are read from."""

import json
import os

import pytest

from neobert.errors import PipelineError
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


def test_a_line_that_was_cut_short_is_dropped_when_a_run_goes_on(tmp_path):
    """As after a power loss or on a full disk; the next row must not be written onto its end."""
    tiny.run(tmp_path, {"max_steps": 4})
    path = tmp_path / "throughput.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    tiny.run(tmp_path, None, {"resume_from_checkpoint": 4})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 6, 8, 10, 12]
    assert spent([tmp_path]) is not None


def test_unreadable_lines_of_a_run_do_not_count(tmp_path):
    path = tmp_path / "a/throughput.jsonl"
    rows(path, ("CPU", 1, 3600), ("CPU", 1, 3600))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"device": "CPU", "dev' + whole + b"\xff\x00\n" + whole[:-20])
    assert spent([tmp_path / "a"]) == "1 x CPU, 4.0 hours"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_at_a_log_line_is_one_clear_error(tmp_path):
    (tmp_path / "throughput.jsonl").symlink_to("/dev/full")
    with pytest.raises(PipelineError, match=r"throughput\.jsonl: cannot be written \(No space left on device\); free"):
        tiny.run(tmp_path)


def test_a_log_that_cannot_be_opened_is_one_clear_error(tmp_path):
    (tmp_path / "throughput.jsonl").mkdir()
    with pytest.raises(PipelineError, match=r"throughput\.jsonl: cannot be written \(Is a directory\)"):
        tiny.run(tmp_path)
