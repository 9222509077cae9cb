"""What every stage shares: logging, whole-file validation first, one-line errors, seconds for the closing table."""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from neobert.config.validate import validate
from neobert.errors import PipelineError
from neobert.io import runs_dir, write_json

log = logging.getLogger("stages")


def run(main: Callable[[], None]) -> None:
    """Run a stage's ``main``.

    The whole of params.yaml is validated first, so that a mistake in the last stage's section costs no work of the
    first. A ``PipelineError`` is printed as one clear message, and the process exits with status 1.
    """
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    for noisy in (
        "httpx",
        "httpcore",
        "mteb",
        "sentence_transformers",
        "bm25s",
        "urllib3",
        "filelock",
        "datasets",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # transformers imports torchao where it is installed. Beside a CPU build of torch it warns of its CUDA kernels; a
    # recipe that needs what is not there is refused by name (neobert.training.low_precision).
    for warning in ("torchao", "torch.utils._pytree"):
        logging.getLogger(warning).setLevel(logging.ERROR)
    name = main.__module__ if main.__module__ != "__main__" else Path(sys.argv[0]).stem
    start = time.monotonic()
    try:
        validate()
        main()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    # Kept out of every DVC out: seconds differ from run to run and would change dvc.lock.
    write_json(runs_dir() / "timings" / f"{name.removeprefix('stages.')}.json", {"seconds": time.monotonic() - start})
