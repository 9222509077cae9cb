"""BM25 scores, and an import that takes no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from neobert.lexical import WordIndex

ROOT = Path(__file__).resolve().parents[1]


def test_scores_are_lucenes_bm25():
    documents = [["read", "line"], ["read", "read", "file", "line"], ["close"]]
    scores = WordIndex(documents).scores(["read", "never seen"])
    idf = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    lengths, counts = np.array([2, 4, 1]), np.array([1, 2, 0])
    expected = idf * counts / (counts + 1.5 * (0.25 + 0.75 * lengths / lengths.mean()))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_query_without_a_known_word_scores_nothing():
    index = WordIndex([["read"], ["line"]])
    assert not index.scores([]).any()
    assert not index.scores(["never seen"]).any()


def test_importing_bm25s_starts_no_jax_on_a_gpu(tmp_path):
    """A stand-in for JAX notes the platform that it would have started on when bm25s called it."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("")
    (tmp_path / "jax" / "lax.py").write_text(
        "import os\ndef top_k(scores, k):\n    print(os.environ.get('JAX_PLATFORMS'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    environment.pop("JAX_PLATFORMS", None)
    command = [sys.executable, "-c", "import neobert.lexical"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "cpu\n"
