"""The pack and pack_long stages' work: one job a token shard, one manifest a split."""

import logging
from pathlib import Path
from typing import Any

import pyarrow

from neobert.config.packing import PackingConfig
from neobert.io import fingerprint, read_manifest
from neobert.jobs import Engine, Job, code_hash, publish, run_jobs
from neobert.packing.mixture import Part, measure
from neobert.packing.pack import read_lengths

log = logging.getLogger(__name__)
MODULES = tuple(f"neobert.packing.{name}" for name in ("pack", "cut", "plan", "order", "mixture"))


def pack_jobs(tokens: Path, split: str, config: PackingConfig, seed: int) -> tuple[list[Job], list[Part]]:
    """One job for each token shard of ``split``, and what each part of the mixture (none in validation) may take.

    Raises:
        PipelineError: a part of ``length_mixture`` that no document of the corpus is long enough for.
    """
    manifest = read_manifest(tokens)
    info = manifest["tokenizer"]
    # A shard's choice of documents and order of rows are its own, so that they do not depend on the shard's number.
    shards = {
        str((tokens / name).resolve()): (entry["sha256"], (seed + int(entry["sha256"][:12], 16)) % 2**63)
        for name, entry in sorted(manifest["files"].items())
        if name.startswith(split + "/") and entry["documents"]
    }
    mixture = [(part.min_tokens, part.share) for part in config.length_mixture] if split == "train" else []
    parts = measure(mixture, ((read_lengths(path), own) for path, (_, own) in shards.items())) if mixture else []
    fixed = {
        "max_length": config.max_length,
        "special_ids": {role: info[f"{role}_token_id"] for role in ("pad", "cls", "sep")},
        "mixture": [(part.least, part.limit) for part in parts],
    }
    code = [code_hash(*MODULES), pyarrow.__version__]
    jobs: list[Job] = []
    for path, (sha256, own) in shards.items():
        key = "packed-" + fingerprint([sha256, {**fixed, "seed": own}, code])[:40]
        arguments = {**fixed, "seed": own, "shard": path}
        jobs.append(Job(f"shard-{len(jobs):05d}.arrow", key, "neobert.packing.pack:pack_shard", arguments))
    return jobs, parts


def pack(
    tokens: Path, out: Path, config: PackingConfig, seed: int, cache: Path, engine: Engine
) -> dict[str, dict[str, Any]]:
    """Write ``out``/{train,validation} from the token shards.

    Returns:
        For each split its totals: rows, tokens, fill and more; nothing when ``engine`` runs a share of the shards only.

    Raises:
        PipelineError: a part of ``length_mixture`` that no document of the corpus is long enough for.
    """
    manifest = read_manifest(tokens)
    totals = {}
    for split in ("train", "validation"):
        jobs, parts = pack_jobs(tokens, split, config, seed)
        entries = run_jobs(jobs, cache, f"pack {split}", engine)
        if engine.partial:
            continue
        sources = [e["source"] for n, e in sorted(manifest["files"].items()) if n.startswith(split) and e["documents"]]
        for entry, source in zip(entries.values(), sources, strict=True):
            entry["source"] = source
        totals[split] = _totals(entries, config.max_length, parts)
        extra = {
            "max_length": config.max_length,
            "vocab_size": manifest["tokenizer"]["vocab_size"],
            "tokenizer": manifest["tokenizer"],
            "sources": manifest["sources"],
            **totals[split],
        }
        publish(entries, jobs, cache, out / split, extra)
        log.info("%s: %s", split, ", ".join(f"{key} {value}" for key, value in totals[split].items()))
    return totals


def _totals(entries: dict[str, dict[str, Any]], max_length: int, parts: list[Part]) -> dict[str, Any]:
    totals: dict[str, Any] = {
        key: sum(entry[key] for entry in entries.values())
        for key in ("rows", "tokens", "documents", "pieces", "lower_bound")
    }
    totals["max_segments"] = max((entry["max_segments"] for entry in entries.values()), default=0)
    totals["fill"] = round(totals["tokens"] / max(totals["rows"] * max_length, 1), 6)
    if parts:
        totals.update(_mixture(entries, parts))
    return totals


def _mixture(entries: dict[str, dict[str, Any]], parts: list[Part]) -> dict[str, dict[str, Any]]:
    """What the parts of the mixture asked for and what they got, by their least tokens."""
    asked: dict[str, float] = {}
    for part in parts:
        asked[str(part.least)] = asked.get(str(part.least), 0) + part.share
    tokens = {least: sum(entry["mixture_tokens"][least] for entry in entries.values()) for least in asked}
    got = {least: round(taken / sum(tokens.values()), 6) for least, taken in tokens.items()}
    for least in asked:
        log.info(
            "documents of at least %s tokens: asked %.2f%%, got %.2f%%", least, 100 * asked[least], 100 * got[least]
        )
    return {"mixture_asked": asked, "mixture_got": got, "mixture_tokens": tokens}
