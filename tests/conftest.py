"""What holds for every test: remote code of exported models is copied below a folder of this test process.

transformers reads ``HF_MODULES_CACHE`` once, when it is imported, and Python keeps the package it first found there.
So the folder is set before any import and is one for the whole process: a folder a test would break the next test's
import. It also keeps the user's own cache out of it.
"""

import atexit
import os
import shutil
import tempfile

_modules = tempfile.mkdtemp(prefix="neobert-test-modules-")
os.environ["HF_MODULES_CACHE"] = _modules
atexit.register(shutil.rmtree, _modules, ignore_errors=True)
