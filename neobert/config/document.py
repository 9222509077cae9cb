"""Write docs/configuration.md from the dataclasses: every key with its type, default and sentence.

``python -m neobert.config.document docs/configuration.md``; a test keeps the file in step.
"""

import dataclasses
import sys
from typing import Any, get_args

from neobert.config.schema import MISSING, Field, fields, type_name
from neobert.config.validate import SECTIONS, section_class
from neobert.io import write_text

INTRODUCTION = """# Configuration

`params.yaml` is the only configuration. Every key is listed here with its type, default and meaning. This page is
generated from the dataclasses in `neobert/config/` by `make docs`; do not edit it by hand.

Unknown keys, wrong types and contradictions anywhere in the file stop every stage before it does any work.
Set a key for one experiment with `dvc exp run -S section.key=value`, and one that `params.yaml` leaves out with a plus
sign before it, `-S +section.key=value`.

| key | type | default | meaning |
|---|---|---|---|
| `seed` | integer | `42` | Every random choice of the pipeline derives from it. |
"""


def nested(hint: Any) -> type | None:
    """The dataclass that a field holds (also as an optional, in a list or in a mapping), or ``None``."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint
    return next(filter(None, map(nested, get_args(hint))), None)


def show_default(field: Field) -> str:
    """A default as it would stand in params.yaml."""
    if field.default is MISSING:
        return "required"
    if nested(field.type) is not None and not isinstance(field.default, list | dict | type(None)):
        return ""
    text = "null" if field.default is None else str(field.default)
    if isinstance(field.default, bool):
        text = text.lower()
    return f"`{text}`" if len(text) <= 60 else f"{len(field.default)} entries"


def rows(cls: type, prefix: str) -> list[str]:
    """Table rows of a section and of the sections nested in it."""
    lines = []
    for field in fields(cls):
        key = f"{prefix}.{field.name}"
        limits = field.bounds
        rules = (
            [
                f"{w} {b:g}"
                for w, b in ((">=", limits.ge), (">", limits.gt), ("<=", limits.le), ("<", limits.lt))
                if b is not None
            ]
            if limits
            else []
        )
        kind = type_name(field.type) + (f" ({', '.join(rules)})" if rules else "")
        lines.append(f"| `{key}` | {kind} | {show_default(field)} | {field.doc} |")
        inner = nested(field.type)
        if inner is not None:
            is_list = isinstance(field.default, list)
            lines.extend(rows(inner, f"{key}[]" if is_list else key))
    return lines


def document() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for key in SECTIONS:
        cls = section_class(key)
        summary = (sys.modules[cls.__module__].__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        parts.append(f"\n## `{key}`\n\n{summary}\n\n| key | type | default | meaning |\n|---|---|---|---|\n")
        parts.append("\n".join(rows(cls, key)) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    write_text(sys.argv[1], document())
