"""Is dvc.lock in step with code, params and data? ``make lock-check`` prints what is not, and exits 1.

DVC answers by a dry run that needs no data (``--allow-missing``): its exit status is 0 either way, so its output is
read.
"""

import subprocess
import sys


def main() -> None:
    command = ["dvc", "repro", "--allow-missing", "--dry"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    stale = [line for line in answer.stdout.splitlines() if line.startswith("Running stage")]
    if answer.returncode or stale:
        print(answer.stdout + answer.stderr, file=sys.stderr)
        raise SystemExit(
            "error: dvc.lock is not in step with the code, params.yaml or data: run `dvc repro` and commit dvc.lock "
            "with its reports (a cosmetic edit is accepted by `dvc commit --force`)"
        )
    print("dvc.lock is in step with code, params and data")


if __name__ == "__main__":
    main()
