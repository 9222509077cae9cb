"""The README shows the committed run, and names only files and make targets that exist."""

import re

from tests.pipeline.closure import ROOT

README = (ROOT / "README.md").read_text()


def test_score_table_is_the_committed_one():
    shown = README.split("<!-- results -->")[1].split("<!-- /results -->")[0].strip()
    committed = (ROOT / "reports" / "results.md").read_text()
    table = "\n".join(line for line in committed.splitlines() if line.startswith("|"))
    assert shown == table, "copy the table of reports/results.md into README.md"


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_named_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)) <= targets


def test_ci_runs_the_readmes_test_command():
    assert "make test" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text()
