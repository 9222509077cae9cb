"""Validate the whole of params.yaml before any work of any stage.

It can only refuse, never change a result, so the stages' dependencies in dvc.yaml leave it out. Cost: a few
milliseconds.
"""

import glob
import importlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from neobert.config.load import PARAMS, load_seed, read_params
from neobert.config.schema import parse
from neobert.config.torchao import EMULATED
from neobert.errors import PipelineError

# section -> (module of neobert.config, dataclass)
SECTIONS = {
    "corpus": ("corpus", "CorpusConfig"),
    "tokenizer": ("tokenizer", "TokenizerConfig"),
    "packing": ("packing", "PackingConfig"),
    "model": ("model", "ModelConfig"),
    "datacollator": ("datacollator", "DataCollatorConfig"),
    "dataset": ("dataset", "DatasetConfig"),
    "trainer": ("trainer", "TrainerConfig"),
    "optimizer": ("optimizer", "OptimizerConfig"),
    "scheduler": ("scheduler", "SchedulerConfig"),
    "torchao": ("torchao", "TorchaoConfig"),
    "transformer_engine": ("transformer_engine", "TransformerEngineConfig"),
    "quartet2": ("quartet2", "Quartet2Config"),
    "longer_context": ("longer_context", "LongerContextConfig"),
    "contrastive_data": ("contrastive_data", "ContrastiveDataConfig"),
    "contrastive": ("contrastive", "ContrastiveConfig"),
    "export": ("export", "ExportConfig"),
    "evaluation": ("evaluation", "EvaluationConfig"),
    "glue": ("glue", "GlueConfig"),
    "pseudo_perplexity": ("pseudo_perplexity", "PseudoPerplexityConfig"),
    "runtime": ("runtime", "RuntimeConfig"),
}


EMBEDDED = "data/embedded/"
# What the pipeline itself makes, and the model of which it makes it.
PRETRAINED, LONG_CONTEXT = "models/pretrained", "models/long_context"
LOW_PRECISION = ("torchao", "transformer_engine", "quartet2")


def section_class(key: str) -> type:
    """The dataclass of a top-level section."""
    module, name = SECTIONS[key]
    return getattr(importlib.import_module(f"neobert.config.{module}"), name)


def validate(path: str | Path = PARAMS) -> dict[str, Any]:
    """Parse every section of ``path`` and return them by name.

    Raises:
        PipelineError: unknown sections or keys, wrong types, contradictions within and between sections; all at once.
    """
    values = read_params(path)
    load_seed(path)
    problems = [
        f"{key}: unknown section; known sections are seed, {', '.join(SECTIONS)}"
        for key in values
        if key not in SECTIONS and key != "seed"
    ]
    sections = {key: parse(section_class(key), values.get(key), key, problems) for key in SECTIONS}
    if all(section is not None for section in sections.values()):
        problems.extend(contradictions(sections))
    if problems:
        raise PipelineError(f"{path} has {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    return sections


def contradictions(sections: dict[str, Any]) -> list[str]:
    """Rules between sections; each line names both keys, their values and the rule."""
    return [
        *_lengths(sections),
        *_starts(sections),
        *_vocabulary(sections),
        *_embedded(sections),
        *_files(sections),
        *_batch_sizes(sections),
        *_decontaminated(sections),
        *_sampling(sections),
        *_labels(sections),
        *_muonclip(sections),
        *_low_precision(sections),
    ]


def _lengths(sections: dict[str, Any]) -> Iterator[str]:
    limit = sections["model"].max_position_embeddings
    lengths = {"packing.max_length": sections["packing"].max_length}
    # A phase that starts from another model is bound by that one's positions, which the phase itself checks.
    own = _normal(sections["longer_context"].pretrained_from) == PRETRAINED
    if own:
        lengths["longer_context.packing.max_length"] = sections["longer_context"].packing.max_length
    start = _normal(sections["contrastive"].pretrained_from)
    if start == PRETRAINED or (start == LONG_CONTEXT and own):
        lengths["contrastive_data.max_query_length"] = sections["contrastive_data"].max_query_length
        lengths["contrastive_data.max_document_length"] = sections["contrastive_data"].max_document_length
    for key, length in lengths.items():
        if length > limit:
            yield f"{key}: {length} must be at most model.max_position_embeddings ({limit})"


def _starts(sections: dict[str, Any]) -> Iterator[str]:
    """A directory to start from that no stage makes must be there, or be one that DVC can fetch."""
    made = {"longer_context": (PRETRAINED,), "contrastive": (PRETRAINED, LONG_CONTEXT)}
    for section, own in made.items():
        source = _normal(sections[section].pretrained_from)
        if source not in own and not _is_directory(source):
            yield missing_directory(f"{section}.pretrained_from", source)


def _normal(path: str) -> str:
    """``models/x`` for ``./models/x/``, as DVC reads it."""
    return PurePosixPath(path).as_posix()


def missing_directory(key: str, source: str) -> str:
    """What to do about a model to start from that is no directory; a hub's id is told by its one slash."""
    if source.count("/") == 1 and not source.startswith((".", "~", "/", "data/", "models/")):
        target = f"models/{source.rsplit('/', 1)[-1].lower()}"
        return (
            f"{key}: {source} is no directory. DVC tracks directories, so download the hub's model into one, `hf "
            f"download {source} --local-dir {target}`, and set {key} to {target}"
        )
    return f"{key}: {source} is no directory; name a model directory of this pipeline or a Hugging Face directory"


def _vocabulary(sections: dict[str, Any]) -> Iterator[str]:
    rows, tokenizer = sections["model"].vocab_size, sections["tokenizer"]
    if rows is not None and tokenizer.name_or_path is None and rows < tokenizer.vocab_size:
        yield f"model.vocab_size: {rows} must be at least tokenizer.vocab_size ({tokenizer.vocab_size}), or null"


def _embedded(sections: dict[str, Any]) -> Iterator[str]:
    """Pairs and tasks below data/embedded exist only for the embedded corpus."""
    source = sections["corpus"].source
    if source == "installed_packages":
        return
    paths = {f"contrastive_data.sources.{n}.path": s.path for n, s in sections["contrastive_data"].sources.items()}
    cleared = sections["contrastive_data"].decontaminate
    paths |= {f"contrastive_data.decontaminate[{i}]": path for i, path in enumerate(cleared)}
    paths |= {f"evaluation.tasks[{i}].path": task.path for i, task in enumerate(sections["evaluation"].tasks)}
    for key, path in paths.items():
        if path is not None and _is_made(path):
            yield f"{key}: {path} is made only with corpus.source installed_packages, not {source}; name your own"


def _files(sections: dict[str, Any]) -> Iterator[str]:
    """The user's pairs and tasks are there before the first stage, so that a typo does not wait for the last one."""
    data = sections["contrastive_data"]
    for name, source in data.sources.items():
        if source.path is not None and not _is_made(source.path) and not _matches_file(source.path):
            yield (
                f"contrastive_data.sources.{name}.path: {source.path!r} matches no file; put the pairs there, correct "
                "the path, or remove the source"
            )
    directories = {f"contrastive_data.decontaminate[{i}]": path for i, path in enumerate(data.decontaminate)}
    directories |= {f"evaluation.tasks[{i}].path": task.path for i, task in enumerate(sections["evaluation"].tasks)}
    if data.mine_negatives is not None and data.mine_negatives.model is not None:
        directories["contrastive_data.mine_negatives.model"] = data.mine_negatives.model
    for key, path in directories.items():
        if not _is_made(path) and not _is_directory(path):
            yield f"{key}: {path!r} is not a directory; make it, correct the path, or remove the entry"


def _is_made(path: str) -> bool:
    return f"{_normal(path)}/".startswith(EMBEDDED)


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) or _is_tracked(glob.escape(path))


def _matches_file(pattern: str) -> bool:
    paths = (pattern, *glob.iglob(pattern, recursive=True))  # a file's own name may hold brackets
    return any(os.path.isfile(path) for path in paths) or _is_tracked(pattern)


def _is_tracked(pattern: str) -> bool:
    """Whether a .dvc file stands for it, or for a directory above it: DVC can fetch it where a stage needs it."""
    parts = (PurePosixPath(pattern), *PurePosixPath(pattern).parents)
    return any(os.path.isfile(found) for part in parts if part.name for found in glob.iglob(f"{part}.dvc"))


def _batch_sizes(sections: dict[str, Any]) -> Iterator[str]:
    sources = sections["contrastive_data"].sources
    for name, size in sections["contrastive"].batch_sizes.items():
        if name not in sources:
            yield (
                f"contrastive.batch_sizes.{name}: {size} is for no source of contrastive_data.sources, which are "
                f"{', '.join(sources)}; correct the name or remove it"
            )


def _decontaminated(sections: dict[str, Any]) -> Iterator[str]:
    """No pair may hold an evaluation task's text."""
    cleared = [_normal(path) for path in sections["contrastive_data"].decontaminate]
    for index, task in enumerate(sections["evaluation"].tasks):
        if not any(PurePosixPath(task.path).is_relative_to(path) for path in cleared):
            yield (
                f"evaluation.tasks[{index}].path: {task.path} is in no directory of contrastive_data.decontaminate "
                f"({', '.join(cleared) or 'none'}), so training pairs may hold its texts; add it there"
            )


def _labels(sections: dict[str, Any]) -> Iterator[str]:
    """A loss over classes needs every source to say what a row's class is."""
    if sections["contrastive"].loss == "supcon":
        for name, source in sections["contrastive_data"].sources.items():
            if source.label is None:
                yield (
                    f"contrastive_data.sources.{name}.label: None must name the column of a row's class, because "
                    "contrastive.loss is supcon (label: query makes each query a class of its own)"
                )


def _sampling(sections: dict[str, Any]) -> Iterator[str]:
    """One probability for each source of the corpus."""
    probs, corpus = sections["dataset"].sampling_probs, sections["corpus"]
    entries = {"files": len(corpus.files), "hub": len(corpus.hub)}.get(corpus.source, 1)
    if probs is not None and len(probs) != entries:
        yield (
            f"dataset.sampling_probs: {len(probs)} probabilities for {entries} source(s) of corpus.source "
            f"{corpus.source}; give one for each entry, or null"
        )


def _muonclip(sections: dict[str, Any]) -> Iterator[str]:
    """QK-clip scales queries and keys, to no effect where the model normalises them.

    Where a phase starts from a model of elsewhere, training looks at that one itself.
    """
    optimizers = {"optimizer": sections["optimizer"]}
    for key in ("longer_context", "contrastive"):
        if sections[key].pretrained_from in (PRETRAINED, LONG_CONTEXT):
            optimizers[f"{key}.optimizer"] = sections[key].optimizer
    for key, optimizer in optimizers.items():
        if optimizer.name == "muonclip" and sections["model"].ngpt:
            yield f"{key}.name: muonclip scales queries and keys, which model.ngpt (True) normalises; take muon"


def _low_precision(sections: dict[str, Any]) -> Iterator[str]:
    """At most one package, and in both pretraining phases what it needs of the trainer."""
    enabled = [key for key in LOW_PRECISION if sections[key].enable]
    if len(enabled) > 1:
        yield f"{' and '.join(f'{key}.enable' for key in enabled)}: only one may be true"
    for key in enabled:
        section = sections[key]
        for phase, trainer in (
            ("trainer", sections["trainer"]),
            ("longer_context.trainer", sections["longer_context"].trainer),
        ):
            yield from _trained_in(key, section, phase, trainer)
    strategy = sections["runtime"].distributed.strategy
    if sections["torchao"].enable and sections["torchao"].enable_fsdp_float8_all_gather and strategy == "ddp":
        yield (
            "torchao.enable_fsdp_float8_all_gather: true gathers weights, which ddp never does; set "
            "runtime.distributed.strategy to fsdp2 or hsdp"
        )


def _trained_in(key: str, section: Any, phase: str, trainer: Any) -> Iterator[str]:
    if section.require_compile and not trainer.torch_compile:
        yield f"{phase}.torch_compile: false, and {key}.require_compile asks for true; set one of them"
    if section.recipe not in EMULATED and trainer.mixed_precision != "bf16":
        yield f"{phase}.mixed_precision: {trainer.mixed_precision} must be bf16 with {key}.recipe {section.recipe}"
    if section.recipe == "fp8_delayed" and trainer.torch_compile:
        yield (
            f"{phase}.torch_compile: true, and torch.compile cannot trace {key}.recipe fp8_delayed, whose scales are "
            f"state; take fp8_current, or set it and {key}.require_compile to false"
        )
    if key == "transformer_engine" and trainer.gradient_checkpointing:
        yield (
            f"{phase}.gradient_checkpointing: true would recompute layers outside of Transformer Engine's autocast, in "
            "another precision; set it to false"
        )
