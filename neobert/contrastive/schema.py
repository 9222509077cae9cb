"""What a valid pair is: pandera schemas, one per shape of source, over eager polars frames.

A shape says what ``query``, ``corpus`` and ``negative`` are (string, list of strings, or absent) and whether the
pairs carry a score and a label. A wrong column or dtype concerns the whole file and raises; a bad row (null, blank,
too short or long, positive equal to the query, negative equal to the positive) is returned with the rules it breaks.
pandera checks values only on an eager frame (a LazyFrame is checked for its dtypes alone, silently), and only
``lazy=True`` reports every failure. Cost: 1M rows of short texts in about 2 s; failures are joined by row index.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandera.polars as pa
import polars as pl

from neobert.contrastive.decontaminate import normalised
from neobert.errors import PipelineError

Kind = Literal["string", "list", "absent"]
_DTYPES = {"string": pl.String(), "list": pl.List(pl.String())}


@dataclass(frozen=True)
class Shape:
    """What each column of a source holds."""

    query: Kind
    corpus: Kind
    negative: Kind
    scored: bool = False
    labelled: bool = False

    def __str__(self) -> str:
        parts = [f"query: {self.query}", f"corpus: {self.corpus}", f"negative: {self.negative}"]
        return ", ".join(parts + ["score"] * self.scored + ["label"] * self.labelled)


def shape_of(frame: pl.DataFrame, where: str) -> Shape:
    """The shape of ``frame`` (columns query, corpus and optionally negative, score, label).

    Raises:
        PipelineError: a text is neither a string nor a list of strings, a score no number, a label no string or
            integer; ``where`` names the file.
    """
    kinds: dict[str, Kind] = {"negative": "absent"}
    for name in ("query", "corpus", "negative"):
        if name not in frame.columns:
            continue
        dtype = frame.schema[name]
        if dtype == pl.String:
            kinds[name] = "string"
        elif dtype == pl.List(pl.String):
            kinds[name] = "list"
        else:
            raise PipelineError(
                f"{where}: column rule for {name!r} gives {dtype}, which is neither strings nor lists of strings; "
                f"correct the file or contrastive_data.sources"
            )
    if "score" in frame.columns and not frame.schema["score"].is_numeric():
        raise PipelineError(f"{where}: column rule for 'score' gives {frame.schema['score']}, which is not a number")
    if "label" in frame.columns and frame.schema["label"] != pl.String:
        raise PipelineError(
            f"{where}: column rule for 'label' gives {frame.schema['label']}, which is neither strings nor integers"
        )
    return Shape(kinds["query"], kinds["corpus"], kinds["negative"], "score" in frame.columns, "label" in frame.columns)


def _texts(data: pa.PolarsData, kind: Kind, rule: Callable[[pl.Expr], pl.Expr]) -> pl.LazyFrame:
    """One boolean a row: ``rule`` (over one text) holds for the text, or for every text of the list."""
    column = pl.col(data.key)
    if kind == "string":
        return data.lazyframe.select(rule(column))
    # A null inside a list breaks every rule.
    return data.lazyframe.select(column.list.eval(rule(pl.element()).fill_null(False)).list.all())


def _column(kind: Kind, minimum: int, maximum: int, may_be_empty: bool) -> pa.Column:
    def length(text: pl.Expr) -> pl.Expr:
        return text.str.len_chars().is_between(minimum, maximum)

    def not_blank(text: pl.Expr) -> pl.Expr:
        return text.str.contains(r"\S")

    checks = [
        pa.Check(lambda data: _texts(data, kind, not_blank), name="not blank"),
        pa.Check(lambda data: _texts(data, kind, length), name=f"{minimum} to {maximum} characters"),
    ]
    if kind == "list" and not may_be_empty:
        checks.append(pa.Check(lambda data: data.lazyframe.select(pl.col(data.key).list.len() > 0), name="not empty"))
    return pa.Column(_DTYPES[kind], checks=checks, nullable=False)


def _first(text: pl.Expr) -> pl.Expr:
    """The first character of a text's normalised form; null where it is not ASCII, as such may become several."""
    first = text.str.strip_chars().str.head(1)
    return pl.when(first < "\x80").then(first.str.to_lowercase())


def _share(
    left: str, left_kind: Kind, right: str, right_kind: Kind, form: Callable[[pl.Expr], pl.Expr], unknown: bool
) -> pl.Expr:
    """Whether a text of ``left`` is one of ``right`` in ``form``; ``unknown`` where the form of one is null."""

    def as_list(name: str, kind: Kind) -> pl.Expr:
        return pl.col(name).list.eval(form(pl.element())) if kind == "list" else pl.concat_list(form(pl.col(name)))

    if left_kind == right_kind == "string":
        return (form(pl.col(left)) == form(pl.col(right))).fill_null(unknown)
    one, other = as_list(left, left_kind), as_list(right, right_kind)
    shared = one.list.set_intersection(other).list.drop_nulls().list.len() > 0
    if unknown:
        shared |= (one.list.drop_nulls().list.len() < one.list.len()) | (
            other.list.drop_nulls().list.len() < other.list.len()
        )
    return shared.fill_null(unknown)


def _differ(left: str, left_kind: Kind, right: str, right_kind: Kind) -> pa.Check:
    """No text of ``left`` is a text of ``right``, in the form in which duplicates and batches compare them too.

    Only texts whose first characters are alike are brought into that form: of all, it would be most of the cost.
    """

    def check(data: pa.PolarsData) -> pl.LazyFrame:
        frame = data.lazyframe.select(left, right).collect().with_row_index("row")
        kinds = (left, left_kind, right, right_kind)
        alike = frame.filter(_share(*kinds, _first, unknown=True))
        same = alike.filter(_share(*kinds, normalised, unknown=False))["row"]
        return pl.repeat(True, frame.height, eager=True).scatter(same, False).to_frame("ok").lazy()

    return pa.Check(check, name=f"{left} differs from {right}")


def schema(shape: Shape, minimum: int, maximum: int) -> pa.DataFrameSchema:
    """The pandera schema of a shape; texts have ``minimum`` to ``maximum`` characters."""
    columns = {
        "query": _column(shape.query, minimum, maximum, may_be_empty=False),
        "corpus": _column(shape.corpus, minimum, maximum, may_be_empty=False),
    }
    checks = [_differ("corpus", shape.corpus, "query", shape.query)]
    if shape.negative != "absent":
        columns["negative"] = _column(shape.negative, minimum, maximum, may_be_empty=True)
        checks.append(_differ("negative", shape.negative, "corpus", shape.corpus))
    if shape.scored:
        columns["score"] = pa.Column(pl.Float64(), nullable=False)
    if shape.labelled:
        not_blank = pa.Check(lambda data: data.lazyframe.select(pl.col(data.key).str.contains(r"\S")), name="not blank")
        columns["label"] = pa.Column(pl.String(), checks=not_blank, nullable=False)
    return pa.DataFrameSchema(columns, checks=checks)


def validate(
    frame: pl.DataFrame, shape: Shape, *, minimum: int, maximum: int, where: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split ``frame`` into valid rows and bad rows; the bad ones gain a column ``rule`` (all rules they break).

    Raises:
        PipelineError: a column is missing or of another dtype than ``shape`` says.
    """
    try:
        schema(shape, minimum, maximum).validate(frame, lazy=True)
    except pa.errors.SchemaErrors as errors:
        cases = errors.failure_cases
        whole = cases.filter(pl.col("index").is_null())
        if whole.height:
            first = whole.row(0, named=True)
            raise PipelineError(
                f"{where}: column {first['column']!r} breaks {first['check']} (found {first['failure_case']}); "
                f"the source has the shape {shape}"
            ) from errors
        rules = (
            cases.select(
                pl.col("index").cast(pl.Int64).alias("_row"),
                pl.when(pl.col("check") == "not_nullable").then(pl.lit("not null")).otherwise("check").alias("rule"),
                "column",
            )
            .with_columns(
                rule=pl.when(pl.col("column").is_in(["query", "corpus", "negative", "score", "label"]))
                .then(pl.format("{}: {}", "column", "rule"))
                .otherwise("rule")
            )
            .group_by("_row")
            .agg(pl.col("rule").unique().sort().str.join("; "))
        )
        numbered = frame.with_row_index("_row").with_columns(pl.col("_row").cast(pl.Int64))
        good = numbered.join(rules, on="_row", how="anti", maintain_order="left").drop("_row")
        bad = numbered.join(rules, on="_row", how="inner", maintain_order="left").drop("_row")
        return good, bad
    return frame, frame.clear().with_columns(rule=pl.lit(None, pl.String))
