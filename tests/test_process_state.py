"""What one test changes in the process, the next does not see (the order of the two tests is the test)."""

import logging
import os
from pathlib import Path

import torch

DRAWN: list[float] = []


def test_a_test_may_change_the_process(tmp_path: Path):
    DRAWN.append(torch.rand(1).item())
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(torch.get_num_threads() + 1)
    os.environ["LEFT_BY_A_TEST"] = "1"
    os.chdir(tmp_path)
    logging.getLogger("neobert").setLevel(logging.CRITICAL)


def test_the_next_one_does_not_see_it():
    if DRAWN:  # alone, it has nothing to compare with
        assert torch.rand(1).item() == DRAWN[0]
    assert not torch.are_deterministic_algorithms_enabled()
    assert "LEFT_BY_A_TEST" not in os.environ
    assert "test_a_test_may_change" not in os.getcwd()
    assert logging.getLogger("neobert").level != logging.CRITICAL
