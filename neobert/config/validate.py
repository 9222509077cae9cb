"""Validate the whole of params.yaml before any work of any stage.

It can only refuse, never change a result, so the stages' dependencies in dvc.yaml leave it out. Cost: a few
milliseconds.
"""

import importlib
from pathlib import Path
from typing import Any

from neobert.config.load import PARAMS, load_seed, read_params
from neobert.config.schema import parse
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
    "longer_context": ("longer_context", "LongerContextConfig"),
    "contrastive_data": ("contrastive_data", "ContrastiveDataConfig"),
    "contrastive": ("contrastive", "ContrastiveConfig"),
    "export": ("export", "ExportConfig"),
    "evaluation": ("evaluation", "EvaluationConfig"),
    "glue": ("glue", "GlueConfig"),
    "pseudo_perplexity": ("pseudo_perplexity", "PseudoPerplexityConfig"),
    "runtime": ("runtime", "RuntimeConfig"),
}


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
    return []
