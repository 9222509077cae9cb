"""Tokenize (and pack) one data set on its own, without params.yaml and DVC.

    python -m neobert.tokenization --dataset owner/name --output data/mine --tokenizer data/tokenizer --max-length 1024

writes ``<output>/corpus`` and ``<output>/tokens`` and, with ``--max-length``, ``<output>/packed``: the layout of the
pipeline's own stages. An interrupted run continues with its finished shards; another request, or changed local files,
replaces what is there, if ``<output>/request.json`` says that this command wrote it.

On many machines: run once with ``--prepare``, then ``--rank R --world W`` in every task of an array, then once without
them, which publishes. (A second array between the last two packs too: leave ``--max-length`` out of the first
publishing run.)
"""

import argparse
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from neobert.config.corpus import CorpusConfig
from neobert.config.packing import PackingConfig
from neobert.config.schema import parse
from neobert.corpus.build import write_corpus
from neobert.corpus.files import InputFile, find_files
from neobert.errors import PipelineError
from neobert.io import MANIFEST, fingerprint, read_json, sha256_file, write_json
from neobert.jobs import Engine
from neobert.packing.stage import pack
from neobert.tokenization.stage import tokenize
from neobert.tokenization.tokenizer import load_pretrained, open_tokenizer

log = logging.getLogger("neobert.tokenization")
REQUEST = "request.json"  # in an output: what is there is this command's, and belongs to this request
UNFINISHED = {"key": ""}
REPLACED = ("corpus", "tokens", "packed", "tokenizer")
LOADED = ".tokenizer"
WEIGHTS = {".safetensors", ".bin"}  # a model beside its tokenizer


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m neobert.tokenization",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = CorpusConfig()
    add = parser.add_argument
    add("--dataset", required=True, action="append", help="hub name, folder, file, glob or URL; may be repeated")
    add("--output", required=True, type=Path, help="folder to write")
    add("--tokenizer", required=True, help="folder or hub name")
    add("--max-length", type=int, help="also pack rows of so many tokens; documents are cut, never truncated")
    add("--config", help="configuration of a hub data set")
    add("--split", default="train", help="split of a hub data set")
    add("--streaming", action=argparse.BooleanOptionalAction, default=True, help="read a hub data set as it goes")
    add("--max-documents", type=int, help="documents of a hub data set to read")
    add("--text-column", default=default.text_column)
    add("--text-documents", default=default.text_documents, choices=["file", "paragraph", "line"])
    add("--on-bad-rows", default=default.on_bad_rows, choices=["fail", "skip"])
    add("--max-document-bytes", type=int, default=default.max_document_bytes)
    add("--validation-fraction", type=float, default=default.validation_fraction)
    add("--documents-per-shard", type=int, default=default.documents_per_shard)
    add("--seed", type=int, default=42, help="of the order of packed rows")
    add("--num-workers", type=int, help="processes; default one a core")
    add("--scheduler-address", help="run on this dask.distributed cluster")
    add("--prepare", action="store_true", help="write the corpus and the tokenizer only")
    add("--rank", type=int, default=0)
    add("--world", type=int, default=1, help="run every WORLD-th shard from RANK on, and publish nothing")
    return parser.parse_args(argv)


def main(argv: list[str]) -> dict[str, Any]:
    """Run the command; returns the totals of tokens and of each packed split."""
    args = arguments(argv)
    if not 0 <= args.rank < args.world:
        raise PipelineError(f"--rank {args.rank} must be from 0 to --world - 1 ({args.world - 1})")
    packing = None
    if args.max_length is not None:
        packing = checked(PackingConfig, {"max_length": args.max_length}, "packing")
    corpus, tokenizer = args.output / "corpus", args.output / "tokenizer"
    engine = Engine(args.num_workers, args.scheduler_address, args.rank, args.world)
    prepare(corpus_config(args), args.tokenizer, args.output, write=not engine.partial)
    if args.prepare:
        return {}
    cache = args.output / ".shards"
    totals: dict[str, Any] = {}
    published = (args.output / "tokens" / MANIFEST).is_file()
    if not (engine.partial and published):
        totals["tokens"] = tokenize(corpus, tokenizer, args.output / "tokens", cache, engine)
    if packing is not None and (published or not engine.partial):
        totals["packed"] = pack(args.output / "tokens", args.output / "packed", packing, args.seed, cache, engine)
    return totals


def corpus_config(args: argparse.Namespace) -> CorpusConfig:
    """The section ``corpus`` that the command line means."""
    names = ("text_column", "text_documents", "on_bad_rows", "max_document_bytes", "validation_fraction")
    values: dict[str, Any] = {name: getattr(args, name) for name in (*names, "documents_per_shard")}
    if all(is_files(name) for name in args.dataset):
        return checked(CorpusConfig, {**values, "source": "files", "files": args.dataset}, "corpus")
    entry = {
        "config": args.config,
        "split": args.split,
        "streaming": args.streaming,
        "max_documents": args.max_documents,
    }
    hub = [{**entry, "name": name} for name in args.dataset]
    return checked(CorpusConfig, {**values, "source": "hub", "hub": hub}, "corpus")


def checked(cls: type, values: dict[str, Any], key: str) -> Any:
    """A section with the checks that params.yaml gets."""
    problems: list[str] = []
    section = parse(cls, values, key, problems)
    if problems:
        raise PipelineError("; ".join(problems))
    return section


def is_files(name: str) -> bool:
    """A file, glob or URL; a folder is opened as ``datasets`` does, anything else is a name on the hub."""
    return os.path.isfile(name) or "://" in name or any(character in name for character in "*?[")


def prepare(config: CorpusConfig, tokenizer: str, output: Path, write: bool) -> None:
    """Write corpus and tokenizer, unless an earlier run wrote them for the same request and inputs.

    What an earlier request left in ``output`` stays until this one's files and tokenizer are found good, then goes.

    Raises:
        PipelineError: they are not there, and ``write`` is false; a file or tokenizer that cannot be read; ``output``
            holds what this command would remove and did not write.
    """
    hub = [vars(dataset) for dataset in config.hub]
    files = find_files(config.files) if config.source == "files" else []
    refuse_own_inputs(config, files, tokenizer, output)
    request = {"key": fingerprint([{**vars(config), "hub": hub}, tokenizer, inputs(config, files, tokenizer)])}
    done = output / REQUEST
    if done.is_file() and read_json(done) == request and (output / "corpus" / MANIFEST).is_file():
        return
    if not write:
        raise PipelineError(f"{output}: holds no corpus of this request; run the same command once with --prepare")
    refuse_foreign_output(output)
    loaded = output / LOADED
    shutil.rmtree(loaded, ignore_errors=True)
    load_pretrained(tokenizer, loaded)
    open_tokenizer(loaded)
    write_json(done, UNFINISHED)  # first, so that a run cut short below does not pass for the earlier request's
    for name in ("tokens", "packed", "tokenizer"):
        shutil.rmtree(output / name, ignore_errors=True)
    loaded.rename(output / "tokenizer")
    write_corpus(config, output / "corpus")
    write_json(done, request)


def refuse_foreign_output(output: Path) -> None:
    """Keep what another wrote: a user's folder, or the pipeline's own ``data/``.

    Raises:
        PipelineError: ``output`` holds what this command replaces, and no request.json of its own beside it.
    """
    mark = output / REQUEST
    values = read_json(mark) if mark.is_file() else None
    if isinstance(values, dict) and values.keys() == UNFINISHED.keys():
        return
    for name in (*REPLACED, REQUEST):
        if os.path.lexists(output / name):
            raise PipelineError(
                f"--output: {output} holds {name} and no {REQUEST} of this command, which thus may not replace it; "
                f"give another --output, or move {output / name} away"
            )


def refuse_own_inputs(config: CorpusConfig, files: list[InputFile], tokenizer: str, output: Path) -> None:
    """Keep the inputs: they may not lie where this command removes and writes, nor a data set's folder hold that.

    Raises:
        PipelineError: one does, by its name or through links.
    """
    parts = {output / part: names(output / part) for part in (*REPLACED, LOADED)}
    folders = [Path(dataset.name) for dataset in config.hub if os.path.isdir(dataset.name)]
    given = [("--dataset", Path(file.path)) for file in files if isinstance(file.filesystem, LocalFileSystem)]
    given += [("--dataset", folder) for folder in folders]
    given += [("--tokenizer", Path(tokenizer))] * os.path.isdir(tokenizer)
    for option, path in given:
        for part, both in parts.items():
            if any(one.is_relative_to(other) for one in names(path) for other in both):
                raise PipelineError(f"{option}: {path} lies in {part}, which this command replaces; move it elsewhere")
    for folder in folders:
        for part, both in parts.items():
            if any(one.is_relative_to(other) for one in both for other in names(folder)):
                raise PipelineError(f"--dataset: {folder} holds {part}, this command's own; give another --output")


def names(path: Path) -> set[Path]:
    """``path`` as it is written and as links resolve: to remove either's folder would remove it."""
    return {Path(os.path.abspath(path)), path.resolve()}


def inputs(config: CorpusConfig, files: list[InputFile], tokenizer: str) -> list[list[Any]]:
    """What local names stand for now: text by path, size and time of change, a tokenizer's files by hash.

    A name on the hub stands for itself.
    """
    found: list[list[Any]] = []
    for file in files:
        info = file.filesystem.info(file.path)
        found.append([file.path, info.get("size"), str(info.get("mtime") or info.get("ETag"))])
    for folder in (Path(dataset.name).resolve() for dataset in config.hub):
        texts = sorted(path for path in folder.rglob("*") if path.is_file())
        found.extend([str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in texts)
    if os.path.isdir(tokenizer):
        parts = sorted(path for path in Path(tokenizer).iterdir() if path.is_file() and path.suffix not in WEIGHTS)
        found.extend([path.name, sha256_file(path)] for path in parts)
    return found


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        main(sys.argv[1:])
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
