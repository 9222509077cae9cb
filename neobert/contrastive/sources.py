"""Read a source's files (JSONL or Parquet) or hub tables and apply its column rules.

JSONL is parsed line by line with the standard parser, because only then does every error know its line and is no
number turned into a string on the way. Cost: JSONL about 50 MB a second, Parquet as fast as polars reads it.
"""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from neobert.config.contrastive_data import PairSource
from neobert.contrastive.columns import expression, readable, roots, rules
from neobert.contrastive.hub import open_table, parts_of, read_part, tables_of
from neobert.contrastive.hub_sources import Part
from neobert.errors import PipelineError
from neobert.io import sha256_file
from neobert.jsonl import parse_line

_NAMES = {bool: "true or false", int: "number", float: "number", str: "text", list: "list", dict: "object"}
MAX_DEPTH = 64
"""Of lists and objects within each other; Arrow and polars end the process at some hundreds."""
_SCALARS = {bool: pa.bool_(), int: pa.int64(), str: pa.large_string(), type(None): pa.null()}


class Rows(NamedTuple):
    """The rows of one file or hub table."""

    where: str
    frame: pl.DataFrame
    min_score: float | None


def read_tables(name: str, source: PairSource) -> Iterator[Rows]:
    """The files or tables of a source, one after another, each as ``select_columns`` gives it."""
    if source.hub is None:
        for path in source_files(name, source):
            yield Rows(str(path), read_source_file(path, source), source.min_score)
        return
    for part in parts_of(source):
        where = "/".join(filter(None, (part.table.name, part.table.config, part.table.split)))
        yield Rows(where, select_columns(read_part(part), part, where, part.name), part.min_score)


def identity(name: str, source: PairSource) -> list[list[str]]:
    """What a source's rows depend on beside its params: files with their sha256, tables with their fingerprints."""
    if source.hub is None:
        return [[str(path), sha256_file(path)] for path in source_files(name, source)]
    tables = [table for part in parts_of(source) for table in tables_of(part)]
    return [[table.name, str(table.config), table.split, open_table(table)._fingerprint] for table in tables]


def source_files(name: str, source: PairSource) -> list[Path]:
    """The files of a source, sorted; a path that is a file is that file, whatever it would match as a glob.

    Raises:
        PipelineError: no file matches.
    """
    path = source.path or ""
    matches = [path] if Path(path).is_file() else glob.glob(path, recursive=True)
    found = sorted(Path(match) for match in matches if Path(match).is_file())
    if not found:
        raise PipelineError(
            f"contrastive_data.sources.{name}.path: {source.path!r} matches no file; "
            "put the pairs there, or remove the source"
        )
    return found


ColumnRules = PairSource | Part
"""What names the columns of a table: a source in params, or a part of one of the documents'."""


def read_source_file(path: Path, source: ColumnRules) -> pl.DataFrame:
    """One file through ``select_columns``; ``row`` counts from 1, so in a JSONL file it is the line.

    Raises:
        PipelineError: another file type, a line that does not parse, a missing column, values of mixed types.
    """
    wanted = roots(source)
    if path.suffix == ".parquet":
        frame = _read_parquet(path, wanted)
    elif path.suffix in (".jsonl", ".ndjson", ".json"):
        frame = _read_jsonl(path, wanted)
    else:
        raise PipelineError(f"{path}: is neither .jsonl nor .parquet; convert it, or point the source elsewhere")
    return select_columns(frame, source, str(path))


def select_columns(frame: pl.DataFrame, source: ColumnRules, where: str, kind: str = "") -> pl.DataFrame:
    """Columns query, corpus, kind and, where the rules name them, negative, label and score; plus file and row.

    Args:
        frame: the columns that the rules read, and ``_row``.
        where: names the file or table in errors.
        kind: the kind of all rows where no column says it.

    Raises:
        PipelineError: the rules do not fit the data.
    """
    named = rules(source)
    columns = [_column(rule).alias(name) for name, rule in named.items()]
    try:
        frame = frame.cast(readable(frame.schema, named.values()))  # type: ignore[arg-type]
        selected = frame.select(*columns, pl.lit(where).alias("file"), pl.col("_row").cast(pl.Int64).alias("row"))
    except pl.exceptions.PolarsError as error:
        raise PipelineError(f"{where}: the column rules {named} do not fit the data: {error}") from error
    empty = [name for name in ("query", "corpus", "negative") if selected.schema.get(name) == pl.List(pl.Null)]
    selected = selected.with_columns(pl.col(empty).cast(pl.List(pl.String)))
    if "score" in selected.columns:
        if not selected.schema["score"].is_numeric():
            raise PipelineError(f"{where}: column 'score' holds {selected.schema['score']}, not numbers")
        selected = selected.with_columns(pl.col("score").cast(pl.Float64))
    if "label" in selected.columns and selected.schema["label"].is_integer():
        selected = selected.with_columns(pl.col("label").cast(pl.String))
    if "kind" in named and (selected.schema["kind"].is_nested() or selected.schema["kind"] == pl.Binary):
        raise PipelineError(
            f"{where}: column rule for 'kind' gives {selected.schema['kind']}, which is neither text nor a number; "
            "name another column in contrastive_data.sources"
        )
    kinds = pl.col("kind").cast(pl.String).fill_null("") if "kind" in named else pl.lit(kind)
    return selected.with_columns(kind=kinds)


def _column(rule: str | list[str]) -> pl.Expr:
    if isinstance(rule, str):
        return expression(rule)
    return pl.concat_list([expression(part) for part in rule])


def _require(path: Path, wanted: list[str], present: list[str]) -> None:
    for name in wanted:
        if name not in present:
            raise PipelineError(
                f"{path}: has no column {name!r}; its columns are {', '.join(present)}; "
                "name the right ones in contrastive_data.sources"
            )


def _read_parquet(path: Path, wanted: list[str]) -> pl.DataFrame:
    try:
        # Of polars' own functions, the schema's reader takes a name with brackets for a glob.
        _require(path, wanted, pq.read_schema(path).names)
        frame = pl.read_parquet(path, columns=wanted, glob=False)
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        raise PipelineError(f"{path}: is not a readable Parquet file ({error})") from error
    return frame.with_row_index("_row", offset=1)


def _read_jsonl(path: Path, wanted: list[str]) -> pl.DataFrame:
    values: dict[str, list] = {name: [] for name in wanted}
    numbers: list[int] = []
    seen: dict[str, None] = {}
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if line.isspace():
                continue
            try:
                row = parse_line(line)
            except (ValueError, RecursionError) as error:
                raise PipelineError(
                    f"{path}:{number}: is not valid JSON ({error}); correct or remove the line"
                ) from error
            if not isinstance(row, dict):
                raise PipelineError(f"{path}:{number}: is a JSON {type(row).__name__}, not an object with columns")
            seen.update(dict.fromkeys(row))
            numbers.append(number)
            for name in wanted:
                values[name].append(row.get(name))
    if not numbers:
        raise PipelineError(f"{path}: is empty; remove it or fill it")
    _require(path, wanted, list(seen))
    columns = {name: _series(path, name, column, numbers) for name, column in values.items()}
    return pl.DataFrame({"_row": numbers, **columns})


def _series(path: Path, name: str, values: list, numbers: list[int]) -> pl.Series:
    """A polars column of one type that holds all values; mixed types are refused with the line where they begin."""
    dtype = _arrow_type(f"column {name!r}", path, values, numbers)
    try:
        if pa.types.is_nested(dtype):  # polars takes the type of a list in a struct from its first value
            return pl.Series(name, pl.from_arrow(pa.array(values, dtype)))
        return pl.Series(name, values, dtype=pl.Float64 if pa.types.is_floating(dtype) else None, strict=True)
    except (OverflowError, TypeError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        reason = str(error).partition("\n")[0]
        raise PipelineError(f"{path}: column {name!r} holds a number too large for {dtype} ({reason})") from error


def _arrow_type(what: str, path: Path, values: list, numbers: list[int], depth: int = 0) -> pa.DataType:
    """The type of ``values``, which are on the lines ``numbers``: of all of them, so their order does not matter.

    Numbers of which one has a fraction are floats; objects have the fields that any of them has.
    """
    types = {type(value) for value in values} - {type(None)}
    if len({_NAMES[t] for t in types}) > 1:
        found = [(_NAMES[type(value)], line) for value, line in zip(values, numbers, strict=True) if value is not None]
        first, where = found[0]
        kind, line = next((kind, line) for kind, line in found if kind != first)
        raise PipelineError(f"{path}:{line}: {what} holds {kind}, but {first} on line {where}; give it one type")
    if depth == MAX_DEPTH and types & {list, dict}:
        line = next(line for value, line in zip(values, numbers, strict=True) if value is not None)
        raise PipelineError(f"{path}:{line}: {what} is nested deeper than {MAX_DEPTH} levels; flatten it")
    if types == {list}:
        inner = [(x, line) for value, line in zip(values, numbers, strict=True) for x in value or ()]
        lines = [line for _, line in inner]
        return pa.large_list(_arrow_type(f"a list in {what}", path, [x for x, _ in inner], lines, depth + 1))
    if types == {dict}:
        rows = [(value, line) for value, line in zip(values, numbers, strict=True) if value is not None]
        fields = dict.fromkeys(key for value, _ in rows for key in value)
        lines = [line for _, line in rows]
        return pa.struct(
            [
                (key, _arrow_type(f"{what}: {key!r}", path, [v.get(key) for v, _ in rows], lines, depth + 1))
                for key in fields
            ]
        )
    if types == {int}:
        low, high = min(v for v in values if v is not None), max(v for v in values if v is not None)
        if high >= 2**63 and low < 0:
            raise PipelineError(
                f"{path}:{numbers[values.index(low)]}: {what} holds {low}, but {high} on line "
                f"{numbers[values.index(high)]}, and no integer type holds both; write them as text"
            )
        return pa.uint64() if high >= 2**63 else pa.int64()
    return pa.float64() if float in types else _SCALARS[next(iter(types), type(None))]
