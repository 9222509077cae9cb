"""Read one typed section of params.yaml.

YAML 1.2 through ruamel, because YAML 1.1 (PyYAML) reads ``2e-05`` as a string and ``no`` as false.
"""

from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from neobert.config.schema import parse
from neobert.errors import PipelineError

PARAMS = "params.yaml"
Section = TypeVar("Section")


def read_params(path: str | Path = PARAMS) -> dict[str, Any]:
    """The whole file as plain Python values.

    Raises:
        PipelineError: the file is missing, is not UTF-8 or does not parse (with its line), or is not a mapping.
    """
    try:
        data = Path(path).read_bytes()
        values = YAML(typ="safe", pure=True).load(data.decode("utf-8"))
    except FileNotFoundError as error:
        raise PipelineError(f"{path}: does not exist; run from the project's root, where params.yaml is") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PipelineError(
            f"{path}:{line}: is not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from error
    except YAMLError as error:
        raise PipelineError(f"{path}: is not valid YAML 1.2: {error}") from error
    if not isinstance(values, dict):
        raise PipelineError(f"{path}: must be a mapping of sections, not {type(values).__name__}")
    return values


def load(cls: type[Section], key: str, path: str | Path = PARAMS) -> Section:
    """The section at dotted ``key`` (``"trainer"``, ``"longer_context.packing"``) as the dataclass ``cls``.

    A section that the file leaves out takes its defaults.

    Raises:
        PipelineError: unknown keys, wrong types, values out of bounds; all of the section's problems at once.
    """
    value: Any = read_params(path)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    problems: list[str] = []
    section = parse(cls, value, key, problems)
    if problems:
        raise PipelineError(f"{path} has {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return section


def load_seed(path: str | Path = PARAMS) -> int:
    """The top-level ``seed``: every random choice of the pipeline derives from it (default 42)."""
    seed = read_params(path).get("seed", 42)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise PipelineError(f"{path}: seed: {seed!r} is not an integer from 0 to 2**63-1")
    return seed
