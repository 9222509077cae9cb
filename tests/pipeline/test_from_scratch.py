"""benchmarks.from_scratch with the real stages on the small copy: its files are where the program looks for them."""

import json
import sys

from tests.pipeline.conftest import ROOT, TINY, run_in


def test_a_seed_of_the_small_copy_is_trained_and_scored(reproduced, tmp_path):
    before = run_in(reproduced, "git", "status", "--porcelain").out
    program = ("env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "benchmarks.from_scratch")
    run_in(reproduced, *program, "prepare", str(tmp_path), "--profile", str(TINY))
    printed = run_in(reproduced, *program, "seed", str(tmp_path), "5").out
    result = json.loads(printed.splitlines()[-1])
    assert result == json.loads((tmp_path / "seed-5.json").read_text())
    assert {len(scores) for scores in result["scores"].values()} == {4}
    assert result["scores"]["random"] != result["scores"]["pretrained"]
    assert {stage["step"] for name, stage in result["stages"].items() if name != "scoring"} == {3, 4}
    assert "| code_search_modules |" in run_in(reproduced, *program, "table", str(tmp_path / "seed-5.json")).out
    assert run_in(reproduced, "git", "status", "--porcelain").out == before
