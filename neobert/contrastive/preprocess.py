"""From sources to validated, tokenised pairs.

Algorithm: each source is read, brought to one shape, validated (bad rows are set aside with the rule they break),
freed of its own duplicates and tokenised; that result is cached under the hash of its files, rules and code, so a new
source costs only itself. Then, over all sources: duplicates, contaminated pairs, and a split by the hash of the query,
so that a query is on one side only. Cost: a source is held in memory once, about its text plus 4 bytes a token.
"""

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from neobert.config.contrastive_data import ContrastiveDataConfig, PairSource
from neobert.contrastive.decontaminate import contaminated, evaluation_texts
from neobert.contrastive.duplicates import merge
from neobert.contrastive.mining import mine
from neobert.contrastive.pairs import write_pairs, write_parquet
from neobert.contrastive.schema import shape_of, validate
from neobert.contrastive.sources import identity, read_tables
from neobert.contrastive.tokens import add_tokens, check_prompts, load_tokenizer
from neobert.errors import PipelineError
from neobert.io import atomic_path, fingerprint, read_json, sha256_file, write_json, write_manifest

log = logging.getLogger(__name__)
# The modules whose code decides what a source's cached result is.
PREPARING = (
    "columns",
    "decontaminate",
    "duplicates",
    "hub",
    "hub_sources",
    "preprocess",
    "schema",
    "sources",
    "tokens",
)
QUARANTINE: dict[str, Any] = {
    "source": pl.String,
    "file": pl.String,
    "row": pl.Int64,
    "rule": pl.String,
    "query": pl.List(pl.String),
    "corpus": pl.List(pl.String),
    "negative": pl.List(pl.String),
}


@dataclass
class Prepared:
    """A source after its own work: valid pairs with tokens, bad rows, counts."""

    pairs: pl.DataFrame
    bad: pl.DataFrame
    counts: dict[str, Any]


def read_source(name: str, source: PairSource, config: ContrastiveDataConfig) -> Prepared:
    """Read and validate all files of a source; pairs have query, corpus, negatives, kind, label.

    Raises:
        PipelineError: unreadable files, wrong columns or types, files of different shapes.
    """
    good, bad, rows, below, shape = [], [], 0, 0, None
    for where, frame, min_score in read_tables(name, source):
        found = shape_of(frame, where)
        if shape is not None and found != shape:
            raise PipelineError(f"{where}: has the shape ({found}), other files of source {name!r} ({shape})")
        shape, rows = found, rows + frame.height
        valid, invalid = validate(
            frame, found, minimum=config.min_characters, maximum=config.max_characters, where=where
        )
        kept = valid if min_score is None else valid.filter(pl.col("score") >= min_score)
        below += valid.height - kept.height
        good.append(_pairs(kept))
        bad.append(_quarantine(name, invalid))
    quarantine = pl.concat(bad)
    rules = quarantine["rule"].str.split("; ").explode().value_counts(sort=True).rows()
    counts = {
        "rows": rows,
        "bad": quarantine.height,
        "bad_by_rule": dict(sorted(rules)),
        "below_min_score": below,
    }
    return Prepared(pl.concat(good), quarantine, counts)


def _pairs(frame: pl.DataFrame) -> pl.DataFrame:
    """One row a (query, positive): lists of either are spread out, negatives become a list."""
    negatives = pl.lit([], dtype=pl.List(pl.String))
    if "negative" in frame.columns:
        is_list = frame.schema["negative"] == pl.List(pl.String)
        negatives = pl.col("negative") if is_list else pl.concat_list("negative")
    label = pl.col("label") if "label" in frame.columns else pl.lit(None, dtype=pl.String)
    frame = frame.with_columns(negatives=negatives.list.unique(maintain_order=True), label=label)
    for column in ("query", "corpus"):
        if frame.schema[column] == pl.List(pl.String):
            frame = frame.explode(column)
    return frame.select("query", "corpus", "negatives", "kind", "label")


def _quarantine(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    def as_list(column: str) -> pl.Expr:
        if column not in frame.columns:
            return pl.lit(None, pl.List(pl.String)).alias(column)
        is_list = frame.schema[column] == pl.List(pl.String)
        return pl.col(column) if is_list else pl.concat_list(column).alias(column)

    columns = [as_list(column) for column in ("query", "corpus", "negative")]
    return frame.select(pl.lit(name).alias("source"), "file", "row", "rule", *columns).cast(pl.Schema(QUARANTINE))  # type: ignore[arg-type]


def prepare_source(
    name: str, source: PairSource, config: ContrastiveDataConfig, tokenizer_dir: Path, cache: Path
) -> Prepared:
    """``read_source``, duplicates, tokens; from the cache where files, rules and code are the same as before."""
    code = [sha256_file(Path(__file__).with_name(f"{module}.py")) for module in PREPARING]
    files = identity(name, source)
    parts = (config.min_characters, config.max_characters, config.max_query_length, config.max_document_length)
    tokenizer_sha = sha256_file(tokenizer_dir / "tokenizer.json")
    key = fingerprint([name, asdict(source), files, parts, asdict(config.prompts), tokenizer_sha, code])[:24]
    directory = cache / f"{name}-{key}"
    if (directory / "counts.json").is_file():
        log.info("source %s: unchanged, taken from %s", name, directory)
        return Prepared(
            pl.read_ipc(directory / "pairs.arrow"),
            pl.read_ipc(directory / "bad.arrow"),
            read_json(directory / "counts.json"),
        )
    prepared = read_source(name, source, config)
    unique = merge(prepared.pairs)
    prepared.counts["duplicates"] = prepared.pairs.height - unique.height
    prepared.pairs = add_tokens(
        unique.with_columns(source=pl.lit(name)),
        load_tokenizer(tokenizer_dir),
        config.prompts.query,
        config.prompts.document,
        config.max_query_length,
        config.max_document_length,
    )
    for frame, file in ((prepared.pairs, "pairs.arrow"), (prepared.bad, "bad.arrow")):
        with atomic_path(directory / file) as path:
            frame.write_ipc(path)
    write_json(directory / "counts.json", prepared.counts)
    return prepared


def _check_bad_fraction(name: str, prepared: Prepared, config: ContrastiveDataConfig) -> None:
    counts = prepared.counts
    if counts["bad"] <= config.max_bad_fraction * counts["rows"]:
        return
    first = prepared.bad.row(0, named=True)
    raise PipelineError(
        f"contrastive_data.sources.{name}: {counts['bad']} of {counts['rows']} rows are bad "
        f"({counts['bad_by_rule']}), more than contrastive_data.max_bad_fraction ({config.max_bad_fraction}) allows; "
        f"the first is {first['file']}:{first['row']} ({first['rule']}); correct the rows or raise the limit"
    )


def split(pairs: pl.DataFrame, fraction: float, limit: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(train, validation): the queries of smallest hash are held out, at most ``limit`` pairs, whole queries only."""
    hashes = pairs["hashes"].list.first()
    threshold = min(int(fraction * 2.0**64), 2**64 - 1)
    candidates = hashes.filter(hashes < threshold).sort()
    if candidates.len() > limit:
        threshold = int(candidates[limit])
    held_out = hashes < threshold
    return pairs.filter(~held_out), pairs.filter(held_out)


def preprocess(config: ContrastiveDataConfig, tokenizer_dir: Path, out: Path, cache: Path) -> dict[str, Any]:
    """Write ``out``/{train,validation,quarantine} and its manifest; return the counts of the report.

    Raises:
        PipelineError: an unusable source (see ``read_source``), too many bad rows, a prompt that is too long, or no
            pair left.
    """
    check_prompts(load_tokenizer(tokenizer_dir), config)
    prepared = {name: prepare_source(name, s, config, tokenizer_dir, cache) for name, s in config.sources.items()}
    if out.exists():
        shutil.rmtree(out)
    write_parquet(out / "quarantine" / "part-00000.parquet", pl.concat([p.bad for p in prepared.values()]))
    for name, source in prepared.items():
        _check_bad_fraction(name, source, config)
    pairs = pl.concat([p.pairs for p in prepared.values()])
    unique = merge(pairs)
    leaked = contaminated(unique, evaluation_texts(config.decontaminate))
    clean = unique.filter(~leaked)
    train, validation = split(clean, config.validation_fraction, config.max_validation_pairs)
    counts = {name: dict(p.counts) for name, p in prepared.items()}
    for name, count in counts.items():
        tables = (pairs, unique, unique.filter(leaked), train, validation)
        before, after, dropped, kept, held_out = (t.filter(pl.col("source") == name).height for t in tables)
        count["duplicates"] += before - after
        count |= {"contaminated": dropped, "train": kept, "validation": held_out}
    if not train.height:
        raise PipelineError(f"contrastive_data: no training pair is left of {counts}; add sources or pairs")
    mined = 0
    if config.mine_negatives is not None:
        train, mined = mine(train, config.mine_negatives, sha256_file(tokenizer_dir / "tokenizer.json"))
    groups = clean.select("source", "kind").unique().sort("source", "kind").rows()
    files = write_pairs(out / "train", train, groups) | write_pairs(out / "validation", validation, groups)
    write_manifest(
        out,
        {
            "files": files,
            "groups": [list(group) for group in groups],
            "labelled": sorted(name for name, source in config.sources.items() if source.label is not None),
            "max_document_length": config.max_document_length,
            "max_query_length": config.max_query_length,
            "prompts": asdict(config.prompts),
            "tokenizer_sha256": sha256_file(tokenizer_dir / "tokenizer.json"),
        },
    )
    keys = ("rows", "bad", "duplicates", "contaminated", "train", "validation")
    total = {key: sum(c[key] for c in counts.values()) for key in keys}
    return {"sources": counts, "total": {**total, "mined_negatives": mined}}
