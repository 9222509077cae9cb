"""Apply a profile (a partial params file under profiles/) to params.yaml, keeping its comments and order.

``python -m neobert.config.profile NAME``, or ``make profile NAME=...``. The result is validated as a whole before it
replaces the old file; ``git diff params.yaml`` shows what changed.
"""

import sys
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from neobert.config.load import PARAMS, read_params
from neobert.config.validate import validate
from neobert.errors import PipelineError
from neobert.io import atomic_path

# Mappings whose keys are the user's own names.
BY_NAME = {"sources", "batch_sizes"}


def merge(params: Any, profile: Any) -> None:
    """Write every leaf of ``profile`` into ``params`` in place; lists and mappings by name are replaced as a whole."""
    for key, value in profile.items():
        if isinstance(value, dict) and isinstance(params.get(key), dict) and key not in BY_NAME:
            merge(params[key], value)
        else:
            params[key] = value


def editor() -> YAML:
    """A YAML reader and writer that keeps comments, order and quotes, and writes ``null`` as such."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def apply_profile(name: str, directory: str | Path = "profiles", path: str | Path = PARAMS) -> None:
    """Write profile ``name`` into ``path``.

    Raises:
        PipelineError: no such profile, or the merged file would be invalid; ``path`` is then untouched.
    """
    source = Path(directory) / f"{name}.yaml"
    if not source.is_file():
        known = ", ".join(sorted(p.stem for p in Path(directory).glob("*.yaml")))
        raise PipelineError(f"{source}: no such profile; there are {known}")
    read_params(path)  # refuses a file that is missing, not UTF-8 or not YAML
    yaml = editor()
    params = yaml.load(Path(path).read_text(encoding="utf-8"))
    merge(params, YAML(typ="safe", pure=True).load(source.read_text(encoding="utf-8")))
    text = StringIO()
    yaml.dump(params, text)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
        validate(temporary)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m neobert.config.profile NAME")
    try:
        apply_profile(sys.argv[1])
    except PipelineError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"profiles/{sys.argv[1]}.yaml is now in {PARAMS}; `git diff {PARAMS}` shows what changed")


if __name__ == "__main__":
    main()
