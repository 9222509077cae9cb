"""What holds for every test: it starts from the same state of the process, whatever ran before it.

Remote code of exported models is copied below a folder of this test process: transformers reads ``HF_MODULES_CACHE``
once, when it is imported, and Python keeps the package it first found there. So the folder is set before any import and
is one for the whole process: a folder a test would break the next test's import. It also keeps the user's own cache out
of it.
"""

import atexit
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator

import pytest

_modules = tempfile.mkdtemp(prefix="neobert-test-modules-")
os.environ["HF_MODULES_CACHE"] = _modules
atexit.register(shutil.rmtree, _modules, ignore_errors=True)
PYTESTS_OWN = "PYTEST_CURRENT_TEST"


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Seed what draws at random, and put back what code under test changes for its whole process."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    precision, dtype = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    environment, directory = dict(os.environ), os.getcwd()
    loggers = [logging.getLogger(name) for name in (None, "neobert", "stages")]
    levels = [logger.level for logger in loggers]
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.set_default_dtype(dtype)
    os.chdir(directory)
    for name in os.environ.keys() - environment.keys() - {PYTESTS_OWN}:
        del os.environ[name]
    os.environ.update({name: value for name, value in environment.items() if name != PYTESTS_OWN})
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
