"""Apply a profile (a partial params file under profiles/) to params.yaml, keeping its comments and order.

``python -m neobert.config.profile NAME``, or ``make profile NAME=...``. The result is validated as a whole before it
replaces the old file; ``git diff params.yaml`` shows what changed. A profile may bring data along, for whoever has the
default's; data of the user's own stays. Keys that no profile names stay too, so each spells out what another one sets:
then the order in which profiles were applied does not matter (a test applies them in pairs).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
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
# What a run learns from and is measured on, rather than its size and recipe.
DATA = (
    "corpus",
    "tokenizer",
    "contrastive_data.sources",
    "contrastive_data.mine_negatives",
    "contrastive_data.decontaminate",
    "evaluation.tasks",
    "evaluation.headline",
    "evaluation.benchmarks",
)
DEFAULT_SOURCE = "installed_packages"


@dataclass(frozen=True)
class Data:
    """The data keys, dotted, in which a profile differs from params.yaml; one of the lists is empty."""

    kept: list[str]
    replaced: list[str]


def merge(params: Any, profile: Any) -> None:
    """Write every leaf of ``profile`` into ``params`` in place; lists and mappings by name are replaced as a whole."""
    for key, value in profile.items():
        if isinstance(value, dict) and isinstance(params.get(key), dict) and key not in BY_NAME:
            merge(params[key], value)
        elif key not in params and hasattr(params, "insert") and params:
            # Before the last key, as ruamel keeps the comment of the section that follows with the last one.
            params.insert(len(params) - 1, key, value)
        else:
            params[key] = value


def differences(profile: Any, params: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys whose value ``merge`` would change; a key that ``params`` leaves out counts as null."""
    for key, value in profile.items():
        current = params.get(key)
        if isinstance(value, dict) and isinstance(current, dict) and key not in BY_NAME:
            yield from differences(value, current, f"{prefix}{key}.")
        elif value != current:
            yield f"{prefix}{key}"


def without_data(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A copy of a profile that leaves out the keys of ``DATA``."""
    return {
        key: without_data(value, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in DATA
    }


def editor() -> YAML:
    """A YAML reader and writer that keeps comments, order and quotes, and writes ``null`` as such."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def apply_profile(name: str, directory: str | Path = "profiles", path: str | Path = PARAMS) -> Data:
    """Write profile ``name`` into ``path``, whose data stays where ``corpus.source`` is not the default.

    Raises:
        PipelineError: no such profile, one for the default data where ``path`` has other, or the merged file would be
            invalid; ``path`` is then untouched.
    """
    source = Path(directory) / f"{name}.yaml"
    if not source.is_file():
        known = ", ".join(sorted(p.stem for p in Path(directory).glob("*.yaml")))
        raise PipelineError(f"{source}: no such profile; there are {known}")
    profile = read_params(source)
    data = _data(profile, read_params(path), str(source))
    yaml = editor()
    params = yaml.load(Path(path).read_text(encoding="utf-8"))
    merge(params, without_data(profile) if data.kept else profile)
    text = StringIO()
    yaml.dump(params, text)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
        validate(temporary)
    return data


def _data(profile: dict[str, Any], params: dict[str, Any], name: str) -> Data:
    own, wanted = _source(params, DEFAULT_SOURCE), _source(profile, None)
    changes = [key for key in differences(profile, params) if any(f"{key}.".startswith(f"{data}.") for data in DATA)]
    if own == DEFAULT_SOURCE:
        return Data(kept=[], replaced=changes)
    if wanted == DEFAULT_SOURCE:
        raise PipelineError(
            f"{name}: is a size for the default data (corpus.source {DEFAULT_SOURCE}), and corpus.source is {own}; "
            f"take another profile, or go back to the default first (`git checkout {PARAMS}`, if that is committed)"
        )
    return Data(kept=changes, replaced=[])


def _source(values: dict[str, Any], absent: str | None) -> str | None:
    corpus = values.get("corpus")
    return corpus.get("source", absent) if isinstance(corpus, dict) else absent


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m neobert.config.profile NAME")
    try:
        data = apply_profile(sys.argv[1])
    except PipelineError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"profiles/{sys.argv[1]}.yaml is now in {PARAMS}; `git diff {PARAMS}` shows what changed")
    if data.kept:
        print(f"kept your data, where the profile has other: {', '.join(data.kept)}")
    if data.replaced:
        print(f"replaced these data keys, as corpus.source was the default: {', '.join(data.replaced)}")


if __name__ == "__main__":
    main()
