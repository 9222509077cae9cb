"""The tokenize stage's work: one job a corpus shard."""

import logging
from pathlib import Path
from typing import Any

import pyarrow
import tokenizers

from neobert.errors import PipelineError
from neobert.io import fingerprint, read_manifest
from neobert.jobs import Engine, Job, code_hash, publish, run_jobs
from neobert.tokenization.tokenizer import open_tokenizer

log = logging.getLogger(__name__)
MODULES = tuple(f"neobert.tokenization.{name}" for name in ("shard", "encode", "memo", "tokenizer"))


def tokenize_jobs(corpus: Path, tokenizer: Path) -> list[Job]:
    """One job for each shard of ``corpus``."""
    _, info = open_tokenizer(tokenizer)
    versions = {"tokenizers": tokenizers.__version__, "pyarrow": pyarrow.__version__, "code": code_hash(*MODULES)}
    return [
        Job(
            name=str(Path(name).with_suffix(".arrow")),
            key="tokens-" + fingerprint([entry["sha256"], info.sha256, versions])[:40],
            function="neobert.tokenization.shard:tokenize_shard",
            arguments={"shard": str((corpus / name).resolve()), "tokenizer": str(tokenizer.resolve())},
        )
        for name, entry in sorted(read_manifest(corpus)["files"].items())
    ]


def tokenize(corpus: Path, tokenizer: Path, out: Path, cache: Path, engine: Engine) -> dict[str, Any]:
    """Write the token shards of ``corpus`` to ``out``.

    Returns:
        Totals: documents and tokens; nothing when ``engine`` runs a share of the shards only.

    Raises:
        PipelineError: no token came out at all.
    """
    manifest = read_manifest(corpus)
    _, info = open_tokenizer(tokenizer)
    jobs = tokenize_jobs(corpus, tokenizer)
    entries = run_jobs(jobs, cache, "tokenize", engine)
    if engine.partial:
        return {}
    for name, entry in manifest["files"].items():
        entries[str(Path(name).with_suffix(".arrow"))]["source"] = entry["source"]
    totals = {key: sum(entry[key] for entry in entries.values()) for key in ("documents", "tokens", "without_tokens")}
    if not totals["tokens"]:
        raise PipelineError(f"{corpus}: no document yields a token under the tokenizer in {tokenizer}")
    out.mkdir(parents=True, exist_ok=True)
    publish(entries, jobs, cache, out, {"tokenizer": info.as_dict(), "sources": manifest.get("sources", []), **totals})
    log.info("%d documents, %d tokens", totals["documents"], totals["tokens"])
    return totals
