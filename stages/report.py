"""``python -m stages.report``: write reports/index.html, one page of the whole run.

Not a DVC stage: it shows seconds, which differ from run to run and would change dvc.lock.
"""

from pathlib import Path

from neobert.io import write_text
from neobert.report.gather import Places
from neobert.report.page import page
from stages.stage import runs_dir

PAGE = Path("reports/index.html")


def main() -> None:
    write_text(PAGE, page(Places(Path("."), runs_dir())))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
