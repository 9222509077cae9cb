"""Column rules: how a source's own columns become query, positive and negatives.

A rule is a path into a row, ``name``, ``name.field``, ``name[0]``, ``name[*].text``, compiled to one polars
expression, so that a source is a line of data and not a function. Cost: vectorised, no Python a row.
"""

import re
from collections.abc import Iterable
from typing import Any

import polars as pl

from neobert.errors import PipelineError

COLUMNS = ("query", "corpus", "negative", "kind", "label", "score")
"""What a source's rules name."""
_STEP = re.compile(r"\.(?P<field>[^.\[\]]+)|\[(?P<index>-?\d+)\]|\[(?P<star>\*)\]")
_ROOT = re.compile(r"[^.\[\]]+")


def _steps(path: str) -> tuple[str, list[tuple[str, str]]]:
    """Root column and the (kind, value) steps below it."""
    root = _ROOT.match(path)
    position = root.end() if root else 0
    steps = []
    while root and position < len(path):
        match = _STEP.match(path, position)
        if match is None:
            break
        steps.append((match.lastgroup or "", match.group(match.lastgroup or 0)))
        position = match.end()
    if root is None or position != len(path):
        raise PipelineError(f"column rule {path!r}: is not a path like question, answers[0].text or bad[*].text")
    return root.group(), steps


def root(path: str) -> str:
    """The column of the file that a rule reads."""
    return _steps(path)[0]


def rules(source: Any) -> dict[str, str | list[str]]:
    """What a source, or a part of one, says of each of ``COLUMNS``; those it lacks are left out."""
    return {name: rule for name in COLUMNS if (rule := getattr(source, name)) is not None}


def roots(source: Any) -> list[str]:
    """The columns that a source's rules read, sorted."""
    paths = [p for rule in rules(source).values() for p in ([rule] if isinstance(rule, str) else rule)]
    return sorted({root(p) for p in paths})


def readable(schema: pl.Schema, named: Iterable[str | list[str]]) -> dict[str, pl.DataType]:
    """The columns that the rules ``named`` can read only as another type, and that type.

    Dictionary-encoded strings are read as strings and lists of fixed size as lists. Where no row holds a value (all
    lists are empty, say) the file tells no type, so what the rules look for there is taken as given.
    """
    types: dict[str, Any] = {}
    for path in (p for rule in named for p in ([rule] if isinstance(rule, str) else rule)):
        name, steps = _steps(path)
        if name in schema:
            types[name] = _reached(types.get(name, _plain(schema[name])), steps)
    return {name: dtype for name, dtype in types.items() if dtype != schema[name]}


def _plain(dtype: Any) -> Any:
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return pl.String()
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_plain(dtype.inner))
    if isinstance(dtype, pl.Struct):
        return pl.Struct({field.name: _plain(field.dtype) for field in dtype.fields})
    return dtype


def _reached(dtype: Any, steps: list[tuple[str, str]]) -> Any:
    """``dtype``, with what ``steps`` need in place of the types that no value tells."""
    if not steps:
        return dtype
    (kind, argument), rest = steps[0], steps[1:]
    unknown = isinstance(dtype, pl.Null)
    if kind == "field" and (unknown or isinstance(dtype, pl.Struct)):
        fields = {argument: dtype} if unknown else {field.name: field.dtype for field in dtype.fields}
        return pl.Struct({name: _reached(t, rest) if name == argument else t for name, t in fields.items()})
    if kind != "field" and (unknown or isinstance(dtype, pl.List)):
        return pl.List(_reached(dtype if unknown else dtype.inner, rest))
    return dtype


def expression(path: str) -> pl.Expr:
    """The polars expression of a rule; an index beyond the end of a list gives null.

    Raises:
        PipelineError: the rule is not a path.
    """
    name, steps = _steps(path)
    return _descend(pl.col(name), steps)


def _descend(value: pl.Expr, steps: list[tuple[str, str]]) -> pl.Expr:
    for position, (kind, argument) in enumerate(steps):
        if kind == "field":
            value = value.struct.field(argument)
        elif kind == "index":
            value = value.list.get(int(argument), null_on_oob=True)
        else:
            return value.list.eval(_descend(pl.element(), steps[position + 1 :]))
    return value
