"""Find the modules of installed pinned packages: the text that is on every machine once the pins are installed.

Only pure-Python wheels (``py3-none-any``) are read, because wheels built for a platform or a Python differ in their
.py files. Paths come sorted from each package's RECORD; tests are left out. Cost: a stat and a read a file.
"""

import hashlib
import importlib.metadata
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from neobert.errors import PipelineError

_SKIPPED_PARTS = {"test", "tests", "testing", "_vendor", "vendor", "vendored", "_vendored_packages", "__pycache__"}


class SourceFile(NamedTuple):
    package: str
    name: str  # path inside site-packages, with /
    path: str
    held_out: bool


def find_modules(packages: list[str], held_out_packages: list[str], held_out_fraction: float) -> list[SourceFile]:
    """The modules of ``packages`` (``name==version``), sorted by package and path.

    Args:
        held_out_packages: names whose every module is held out.
        held_out_fraction: share of the other packages' modules held out, by hash of ``package/path``.

    Raises:
        PipelineError: a package is missing, of another version or not pure Python; all of them in one message.
    """
    problems: list[str] = []
    found: list[SourceFile] = []
    for requirement in sorted(packages):
        name, _, version = requirement.partition("==")
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement} is not installed")
            continue
        problem = _problem(distribution, version)
        if problem:
            problems.append(f"{requirement} {problem}")
            continue
        whole = name in held_out_packages
        for path in _paths(distribution):
            held = whole or unit_hash(f"{name}/{path}") < held_out_fraction
            found.append(SourceFile(name, path, str(distribution.locate_file(path)), held))
    if problems:
        raise PipelineError(
            "corpus.packages: "
            + "; ".join(problems)
            + ". Install the pins (`pip install -r requirements.lock`) or edit corpus.packages"
        )
    return found


def _problem(distribution: importlib.metadata.Distribution, version: str) -> str | None:
    if distribution.version != version:
        return f"is pinned, but {distribution.version} is installed"
    wheel = distribution.read_text("WHEEL") or ""
    tags = [line.partition(":")[2].strip() for line in wheel.splitlines() if line.startswith("Tag:")]
    if "py3-none-any" not in tags:
        return f"is not a pure-Python wheel (tags: {', '.join(tags) or 'none'}), so its files differ between machines"
    if distribution.files is None:
        return "has no RECORD of its files"
    return None


def _paths(distribution: importlib.metadata.Distribution) -> list[str]:
    paths = []
    for file in distribution.files or ():
        path = PurePosixPath(str(file))
        parts = {part.lower() for part in path.parts}
        stem = path.stem.lower()
        test = stem.startswith("test_") or stem.endswith("_test") or stem == "conftest"
        if path.suffix == ".py" and ".." not in path.parts and not test and not parts & _SKIPPED_PARTS:
            paths.append(path.as_posix())
    return sorted(paths)


def unit_hash(text: str) -> float:
    """A number in [0, 1) from the sha256 of ``text``: the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / (1 << 56)


def read_source(file: SourceFile) -> str | None:
    """The text of a module, or ``None`` when it is not UTF-8 (older sources in Latin-1).

    Raises:
        PipelineError: the file that RECORD lists is gone.
    """
    try:
        return Path(file.path).read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise PipelineError(
            f"{file.path}: listed by the installed {file.package} but not readable ({error.strerror}); "
            f"reinstall the pins: `pip install --force-reinstall -r requirements.lock`"
        ) from error
