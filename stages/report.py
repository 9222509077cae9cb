"""``python -m stages.report``: write reports/index.html, one page of the whole run, and say what training it took.

Not a DVC stage: it shows seconds, which differ from run to run and would change dvc.lock.
"""

from pathlib import Path

from neobert.errors import PipelineError
from neobert.export.provenance import locked_upstream
from neobert.io import runs_dir, write_text
from neobert.report.gather import Places
from neobert.report.page import page
from neobert.training.hardware import spent
from neobert.training.scratch import describe, run_directory

PAGE = Path("reports/index.html")


def hardware() -> str | None:
    """What the trainings behind models/contrastive ran on, if they ran here with the code and params as they are."""
    made_by = locked_upstream(Path("dvc.lock"), "models/contrastive")
    stages = [stage for stage in ("pretrain", "longer_context", "contrastive_finetune") if stage in made_by]
    try:
        return spent([run_directory(stage, describe(stage)) for stage in stages])
    except PipelineError:  # an input is not checked out: the page shows what there is, and so does this
        return None


def main() -> None:
    write_text(PAGE, page(Places(Path("."), runs_dir())))
    print(f"wrote {PAGE}")
    if (used := hardware()) is not None:
        print(f'for the model card, if you like: export.hardware: "{used}"')


if __name__ == "__main__":
    main()
