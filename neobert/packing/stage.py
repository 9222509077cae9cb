"""The pack and pack_long stages' work: one job a token shard, one manifest a split."""

import logging
from pathlib import Path
from typing import Any

import pyarrow

from neobert.config.packing import PackingConfig
from neobert.errors import PipelineError
from neobert.io import fingerprint, read_manifest
from neobert.jobs import Engine, Job, code_hash, publish, run_jobs

log = logging.getLogger(__name__)
MODULES = tuple(f"neobert.packing.{name}" for name in ("pack", "cut", "plan", "order", "mixture"))


def pack_jobs(tokens: Path, split: str, config: PackingConfig, seed: int) -> list[Job]:
    """One job for each token shard of ``split``."""
    manifest = read_manifest(tokens)
    info = manifest["tokenizer"]
    mixture = [(part.min_tokens, part.share) for part in config.length_mixture] if split == "train" else []
    fixed = {
        "max_length": config.max_length,
        "special_ids": {role: info[f"{role}_token_id"] for role in ("pad", "cls", "sep")},
        "mixture": mixture,
    }
    code = [code_hash(*MODULES), pyarrow.__version__]
    jobs: list[Job] = []
    for name, entry in sorted(manifest["files"].items()):
        if name.startswith(split + "/") and entry["documents"]:
            # The order of rows is the shard's own, so that it does not depend on the shard's number.
            arguments = {**fixed, "seed": (seed + int(entry["sha256"][:12], 16)) % 2**63}
            key = "packed-" + fingerprint([entry["sha256"], arguments, code])[:40]
            arguments["shard"] = str((tokens / name).resolve())
            jobs.append(Job(f"shard-{len(jobs):05d}.arrow", key, "neobert.packing.pack:pack_shard", arguments))
    return jobs


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
        jobs = pack_jobs(tokens, split, config, seed)
        entries = run_jobs(jobs, cache, f"pack {split}", engine)
        if engine.partial:
            continue
        sources = [e["source"] for n, e in sorted(manifest["files"].items()) if n.startswith(split) and e["documents"]]
        for entry, source in zip(entries.values(), sources, strict=True):
            entry["source"] = source
        totals[split] = _totals(entries, config, split)
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


def _totals(entries: dict[str, dict[str, Any]], config: PackingConfig, split: str) -> dict[str, Any]:
    totals: dict[str, Any] = {
        key: sum(entry[key] for entry in entries.values())
        for key in ("rows", "tokens", "documents", "pieces", "lower_bound")
    }
    totals["max_segments"] = max((entry["max_segments"] for entry in entries.values()), default=0)
    totals["fill"] = round(totals["tokens"] / max(totals["rows"] * config.max_length, 1), 6)
    if config.length_mixture and split == "train":
        parts: dict[str, int] = {}
        for entry in entries.values():
            for least, tokens in entry["mixture_tokens"].items():
                parts[least] = parts.get(least, 0) + tokens
        empty = [least for least, tokens in parts.items() if not tokens]
        if empty:
            raise PipelineError(
                f"packing.length_mixture asks for documents of at least {', '.join(empty)} tokens, of which the corpus "
                "has none; lower min_tokens, or remove that part and let the shares of the others sum to 1"
            )
        totals["mixture_tokens"] = parts
    return totals
