"""Strict parsing of a plain mapping into a frozen dataclass, with every problem reported at once.

A section is a frozen dataclass whose fields are written
``name: Annotated[type, "One sentence.", Bounds(gt=0)] = default``. The sentence feeds docs/configuration.md, the
bounds are checked here, and an optional method ``problems(self)`` yields ``(field, rule)`` for contradictions
between fields. Nothing is coerced but an integer into a float. Cost: microseconds a section.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

MISSING = object()


@dataclass(frozen=True)
class Bounds:
    """Limits of a number: ``ge`` (at least), ``gt`` (more than), ``le`` (at most), ``lt`` (less than)."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def rule(self, value: float) -> str | None:
        """The rule that ``value`` breaks, or ``None``."""
        checks = (
            (self.ge, "at least", lambda v, b: v >= b),
            (self.gt, "more than", lambda v, b: v > b),
            (self.le, "at most", lambda v, b: v <= b),
            (self.lt, "less than", lambda v, b: v < b),
        )
        for bound, words, holds in checks:
            if bound is not None and not holds(value, bound):
                return f"must be {words} {bound:g}"
        return None


@dataclass(frozen=True)
class Field:
    """One key of a section: its plain type, sentence, bounds and default (``MISSING`` where a value is required)."""

    name: str
    type: Any
    doc: str
    bounds: Bounds | None
    default: Any


def fields(cls: type) -> list[Field]:
    """The fields of a section in the order they are written."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        hint, notes = hints[field.name], list[Any]()
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
        default = field.default if field.default is not dataclasses.MISSING else MISSING
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        doc = next((n for n in notes if isinstance(n, str)), "")
        bounds = next((n for n in notes if isinstance(n, Bounds)), None)
        found.append(Field(field.name, hint, doc, bounds, default))
    return found


def type_name(hint: Any) -> str:
    """A type as a user reads it: ``one of no, fp32, bf16``, ``list of str``, ``int or null``."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return type_name(args[0])
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    if origin is list:
        return f"list of {type_name(args[0])}"
    if origin is dict:
        return f"mapping of {type_name(args[1])}"
    if hint is type(None):
        return "null"
    if dataclasses.is_dataclass(hint):
        return "section"
    return {"str": "string", "int": "integer", "float": "number", "bool": "true or false"}.get(hint.__name__, str(hint))


def parse(cls: type, value: Any, key: str, problems: list[str]) -> Any:
    """Build ``cls`` from the mapping ``value`` found at dotted ``key``; append what is wrong to ``problems``.

    Returns ``None`` when anything was wrong, so that a caller can go on and report all problems at once.
    """
    if value is None:
        value = {}
    if not isinstance(value, dict):
        problems.append(f"{key}: {value!r} is not a section (a mapping of keys to values)")
        return None
    before = len(problems)
    known = {f.name: f for f in fields(cls)}
    for name in value:
        if name not in known:
            problems.append(f"{key}.{name}: unknown key; known keys are {', '.join(known)}")
    kept: dict[str, Any] = {}
    for name, field in known.items():
        if name in value:
            kept[name] = _convert(field.type, value[name], f"{key}.{name}", problems, field.bounds)
        elif field.default is MISSING:
            problems.append(f"{key}.{name}: is required ({type_name(field.type)})")
    if len(problems) > before:
        return None
    section = cls(**kept)
    problems.extend(f"{key}.{name}: {_show(section, name)} {rule}" for name, rule in _own_problems(section))
    return section if len(problems) == before else None


def _own_problems(section: Any) -> Iterator[tuple[str, str]]:
    check = getattr(section, "problems", None)
    yield from check() if check else ()


def _show(section: Any, dotted: str) -> str:
    value = section
    for name in dotted.split("."):
        value = getattr(value, name)
    return repr(value)


def _convert(hint: Any, value: Any, key: str, problems: list[str], bounds: Bounds | None) -> Any:
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        return _convert(inner, value, key, problems, next((n for n in notes if isinstance(n, Bounds)), bounds))
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, key, problems, bounds, hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return parse(hint, value, key, problems)
    if origin is list and isinstance(value, list):
        return [_convert(args[0], v, f"{key}[{i}]", problems, bounds) for i, v in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(k): _convert(args[1], v, f"{key}.{k}", problems, bounds) for k, v in value.items()}
    if not _matches(hint, value):
        problems.append(f"{key}: {value!r} is not {_article(type_name(hint))}")
        return None
    if hint is float:
        value = float(value)
        if not math.isfinite(value):
            problems.append(f"{key}: {value!r} must be finite")
            return None
    rule = bounds.rule(value) if bounds is not None and isinstance(value, int | float) else None
    if rule:
        problems.append(f"{key}: {value!r} {rule}")
    return value


def _convert_union(args, value, key, problems, bounds, hint) -> Any:
    if value is None and type(None) in args:
        return None
    attempts = []
    for option in (a for a in args if a is not type(None)):
        found: list[str] = []
        converted = _convert(option, value, key, found, bounds)
        if not found:
            return converted
        attempts.append(found)
    # One real alternative: its own message says more than the list of types would.
    problems.extend(attempts[0] if len(attempts) == 1 else [f"{key}: {value!r} is not {_article(type_name(hint))}"])
    return None


def _matches(hint: Any, value: Any) -> bool:
    if get_origin(hint) is Literal:
        return any(value == a and type(value) is type(a) for a in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def _article(name: str) -> str:
    if name.startswith(("one of", "true or")):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
