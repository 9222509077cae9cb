"""The project's own params.yaml, profiles and configuration page stay in step with the dataclasses and the code."""

import ast
import dataclasses
import glob
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from neobert.config.document import document, nested, show_default
from neobert.config.load import read_params
from neobert.config.profile import merge
from neobert.config.scheduler import SchedulerConfig
from neobert.config.schema import fields
from neobert.config.trainer import LoopConfig
from neobert.config.validate import SECTIONS, section_class, validate
from neobert.errors import PipelineError

ROOT = Path(__file__).resolve().parents[2]


def test_params_file_is_valid_and_complete():
    sections = validate(ROOT / "params.yaml")
    assert set(read_params(ROOT / "params.yaml")) == {"seed", *sections}


def test_configuration_page_is_in_step():
    assert (ROOT / "docs" / "configuration.md").read_text() == document(), "run `make docs`"


def test_zero_and_one_are_not_shown_as_false_and_true():
    defaults = {f.name: show_default(f) for cls in (SchedulerConfig, LoopConfig) for f in fields(cls)}
    assert (defaults["warmup_steps"], defaults["gradient_clipping"]) == ("`0`", "`1.0`")
    assert (defaults["deterministic"], defaults["decay_steps"]) == ("`false`", "`null`")


def all_sections(cls: type, seen: set[type]) -> set[type]:
    """A section's dataclass and those nested in it."""
    seen.add(cls)
    for field in fields(cls):
        inner = nested(field.type)
        if inner is not None and inner not in seen:
            all_sections(inner, seen)
    return seen


def test_every_key_has_a_sentence():
    for key in SECTIONS:
        for cls in all_sections(section_class(key), set()):
            assert not [f.name for f in fields(cls) if not f.doc.endswith(".")], cls


def attribute_reads() -> set[str]:
    """Every attribute name that code outside neobert/config reads, and the validation, which may refuse for it."""
    found = set()
    for folder in ("neobert", "stages"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.parent.name != "config" or path.name == "validate.py":
                tree = ast.parse(path.read_text())
                found |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
                # load(PackingConfig, "longer_context.packing")
                texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
                found |= {part for text in texts if text.startswith("longer_context.") for part in text.split(".")}
    return found


def derived_from(cls: type) -> set[str]:
    """Fields that the section's own properties read, for callers that use the property instead."""
    tree = ast.parse(Path(ROOT / (cls.__module__.replace(".", "/") + ".py")).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name != "problems":
            names |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
    return names


def test_every_key_is_consumed_somewhere():
    reads = attribute_reads()
    for key in SECTIONS:
        for cls in all_sections(section_class(key), set()):
            unread = {f.name for f in dataclasses.fields(cls)} - reads - derived_from(cls)
            assert not unread, f"{cls.__name__}: nothing reads {sorted(unread)}"


def test_another_models_positions_are_not_those_of_params(tmp_path, monkeypatch):
    """Lengths are bound by model.* only where the phase's model is the one that model.* describes."""
    monkeypatch.chdir(tmp_path)
    params = read_params(ROOT / "params.yaml")
    params["longer_context"]["packing"] = {"max_length": 2048}
    for start, own in (("models/pretrained", True), ("./models/pretrained/", True), ("models/theirs", False)):
        params["longer_context"]["pretrained_from"] = start
        (tmp_path / "models" / "theirs").mkdir(parents=True, exist_ok=True)
        with open("params.yaml", "w") as handle:
            YAML().dump(params, handle)
        if own:
            with pytest.raises(PipelineError, match=r"longer_context\.packing\.max_length: 2048 must be at most"):
                validate()
        else:
            validate()


def changed(tmp_path: Path, change: dict) -> Path:
    """A copy of params.yaml with some keys changed."""
    path = tmp_path / "params.yaml"
    params = read_params(ROOT / "params.yaml")
    merge(params, change)
    with open(path, "w") as handle:
        YAML().dump(params, handle)
    return path


@pytest.mark.parametrize("source", ["files", "hub"])
def test_your_corpus_page_followed_word_for_word_is_valid(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    for name in ("articles/a.jsonl", "faq.jsonl", "faq_search/corpus.jsonl"):
        (tmp_path / "data/raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/raw" / name).touch()
    change: dict = {}
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/your-corpus.md").read_text(), re.DOTALL):
        values = YAML(typ="safe", pure=True).load(block)
        if values.get("corpus", {}).get("source", source) == source:
            merge(change, values)
    sections = validate(changed(tmp_path, change))
    assert sections["corpus"].source == source
    assert {s.path for s in sections["contrastive_data"].sources.values()} == {"data/raw/faq.jsonl"}
    assert [task.path for task in sections["evaluation"].tasks] == ["data/raw/faq_search"]
    read = {path for pattern in sections["corpus"].files for path in glob.glob(pattern)}
    assert read == ({"data/raw/articles/a.jsonl"} if source == "files" else set()), "pairs and tasks are no corpus"


@pytest.mark.parametrize("tracked", ["faq.dvc", "faq/a.jsonl.dvc", "../raw.dvc"])
def test_pairs_and_tasks_that_dvc_can_fetch_need_not_be_there(tmp_path, monkeypatch, tracked):
    monkeypatch.chdir(tmp_path)
    change = {"contrastive_data": {"sources": {"faq": {"path": "data/raw/faq/*.jsonl"}}}}
    path = changed(tmp_path, change)
    with pytest.raises(PipelineError, match="matches no file"):
        validate(path)
    (tmp_path / "data/raw/faq").mkdir(parents=True)
    (tmp_path / "data/raw" / tracked).touch()
    validate(path)


EMBEDDED_TASK = {"name": "find", "type": "retrieval", "path": "data/embedded/tasks/find"}


def test_a_headline_may_be_called_retrieval(tmp_path):
    tasks = [EMBEDDED_TASK, {**EMBEDDED_TASK, "name": "retrieval"}]
    validate(changed(tmp_path, {"evaluation": {"tasks": tasks, "headline": "retrieval"}}))


GPU = {"mixed_precision": "bf16", "torch_compile": True}
PHASES = {"trainer": GPU, "longer_context": {"trainer": GPU}}
LOW_PRECISION = [
    (
        {**PHASES, "torchao": {"enable": True}, "quartet2": {"enable": True}},
        r"torchao\.enable and quartet2\.enable: only one may be true",
    ),
    ({"torchao": {"enable": True}}, r"\n  trainer\.torch_compile: false, and torchao\.require_compile asks for true"),
    (
        {"trainer": GPU, "torchao": {"enable": True, "recipe": "mxfp8_emulated"}},
        r"longer_context\.trainer\.torch_compile: false, and torchao\.require_compile",
    ),
    (
        {"quartet2": {"enable": True, "require_compile": False}},
        r"longer_context\.trainer\.mixed_precision: no must be bf16 with quartet2\.recipe quartet_ii",
    ),
    (
        {**PHASES, "torchao": {"enable": True, "recipe": "float8_tensorwise", "enable_fsdp_float8_all_gather": True}},
        r"enable_fsdp_float8_all_gather: true gathers weights, which ddp never does",
    ),
    ({"torchao": {"enable_fsdp_float8_all_gather": True}}, r"all_gather: True needs one scale a weight"),
    ({"torchao": {"precompute_float8_dynamic_scale_for_fsdp": True}}, r"_for_fsdp: True makes the scales that"),
    (
        {"torchao": {"recipe": "float8_rowwise_with_gw_hp", "auto_filter_small_kn": True}},
        r"auto_filter_small_kn: True is for float8_tensorwise and float8_rowwise, not float8_rowwise_with_gw_hp",
    ),
    ({"torchao": {"filter_fqns": []}}, r"torchao\.filter_fqns: \[\] must name the decoder"),
    (
        {**PHASES, "transformer_engine": {"enable": True, "recipe": "fp8_delayed"}},
        r"trainer\.torch_compile: true, and torch\.compile cannot trace transformer_engine\.recipe fp8_delayed",
    ),
    (
        {**PHASES, "trainer": {**GPU, "gradient_checkpointing": True}, "transformer_engine": {"enable": True}},
        r"trainer\.gradient_checkpointing: true would recompute layers outside of Transformer Engine",
    ),
    ({"transformer_engine": {"disable_rht": True}}, r"disable_rht: True is for nvfp4, not fp8_current"),
    ({"transformer_engine": {"recipe": "nvfp4", "fp8_format": "E4M3"}}, r"fp8_format: 'E4M3' is not for nvfp4"),
    ({"quartet2": {"required_dim_multiple": 192}}, r"required_dim_multiple: 192 must be a multiple of 128"),
]


@pytest.mark.parametrize(
    "change",
    [
        {**PHASES, "torchao": {"enable": True}},
        {"torchao": {"enable": True, "recipe": "mxfp4_emulated", "require_compile": False}},
        {**PHASES, "transformer_engine": {"enable": True, "recipe": "nvfp4", "disable_rht": True}},
        {**PHASES, "quartet2": {"enable": True}},
        {
            **PHASES,
            "runtime": {"distributed": {"strategy": "fsdp2"}},
            "torchao": {
                "enable": True,
                "recipe": "float8_tensorwise",
                "enable_fsdp_float8_all_gather": True,
                "precompute_float8_dynamic_scale_for_fsdp": True,
            },
        },
    ],
)
def test_low_precision_as_documented_is_valid(tmp_path, change):
    validate(changed(tmp_path, change))


def test_a_file_of_pairs_may_have_brackets_in_its_name(tmp_path):
    path = tmp_path / "pairs[1].jsonl"
    change = {"contrastive_data": {"sources": {"embedded": {"path": str(path)}}}}
    with pytest.raises(PipelineError, match="matches no file"):
        validate(changed(tmp_path, change))
    path.touch()
    validate(changed(tmp_path, change))


def test_a_cleared_directory_may_be_spelled_another_way(tmp_path):
    validate(changed(tmp_path, {"contrastive_data": {"decontaminate": ["./data//embedded/"]}}))
    beside = changed(tmp_path, {"contrastive_data": {"decontaminate": ["data/embedded/task"]}})
    with pytest.raises(PipelineError, match=r"evaluation\.tasks\[0\]\.path: .* add it there"):
        validate(beside)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"packing": {"max_length": 1024}},
            r"packing\.max_length: 1024 must be at most model\.max_position_embeddings",
        ),
        ({"model": {"vocab_size": 512}}, r"model\.vocab_size: 512 must be at least tokenizer\.vocab_size"),
        ({"corpus": {"source": "files", "files": ["a.txt"]}}, r"sources\.embedded\.path: .* only with corpus\.source"),
        (
            {"corpus": {"source": "files", "files": ["a.txt"]}},
            r"contrastive_data\.decontaminate\[0\]: data/embedded/tasks is made only with corpus\.source",
        ),
        ({"contrastive_data": {"decontaminate": []}}, r"evaluation\.tasks\[0\]\.path: .* add it there"),
        (
            {"contrastive": {"loss": "supcon", "symmetric": False}},
            r"sources\.embedded\.label: None must .* contrastive\.loss is supcon",
        ),
        (
            {"contrastive": {"batch_sizes": {"fqa": 4}}},
            r"contrastive\.batch_sizes\.fqa: 4 is for no source of contrastive_data\.sources, which are embedded;",
        ),
        (
            {"contrastive_data": {"sources": {"faq": {"path": "data/raw/fq.jsonl"}}}},
            r"contrastive_data\.sources\.faq\.path: 'data/raw/fq\.jsonl' matches no file",
        ),
        (
            {"evaluation": {"tasks": [{"name": "t", "type": "sts", "path": "data/raw/absent"}], "headline": None}},
            r"evaluation\.tasks\[0\]\.path: 'data/raw/absent' is not a directory",
        ),
        (
            {"evaluation": {"tasks": [{**EMBEDDED_TASK, "name": "retrieval", "type": "sts"}], "headline": None}},
            r"evaluation\.tasks\[0\]\.name: 'retrieval' is what reports/summary\.json calls the headline task",
        ),
        (
            {"evaluation": {"tasks": [EMBEDDED_TASK, {**EMBEDDED_TASK, "name": "retrieval"}], "headline": None}},
            r"evaluation\.headline: None makes find what reports/summary\.json calls retrieval.* name it retrieval, or",
        ),
        (
            {"contrastive_data": {"decontaminate": ["data/embedded/tasks", ""]}},
            r"contrastive_data\.decontaminate\[1\]: '' is not a directory",
        ),
        (
            {"contrastive_data": {"mine_negatives": {"method": "encoder", "model": "data/raw/absent"}}},
            r"contrastive_data\.mine_negatives\.model: 'data/raw/absent' is not a directory",
        ),
        ({"tokenizer": {"name_or_path": ""}}, r"tokenizer\.name_or_path: '' must be a folder or a hub name, or null"),
        ({"dataset": {"sampling_probs": [float("nan")]}}, r"dataset\.sampling_probs\[0\]: nan must be finite"),
        ({"optimizer": {"lr": float("inf")}}, r"optimizer\.lr: inf must be finite"),
        ({"dataset": {"sampling_probs": [0.5, 0.5]}}, r"dataset\.sampling_probs: 2 probabilities for 1 source"),
        ({"trainer": {"mixed_precision": "fp16"}}, r"trainer\.mixed_precision: 'fp16' is not one of no, fp32, bf16"),
        (
            {"contrastive": {"pretrained_from": "EuroBERT/EuroBERT-210m"}},
            r"contrastive\.pretrained_from: .* `hf download EuroBERT/EuroBERT-210m --local-dir models/eurobert-210m`",
        ),
        (
            {"longer_context": {"pretrained_from": "models/absent"}},
            r"longer_context\.pretrained_from: models/absent is no directory",
        ),
        (
            {"longer_context": {"optimizer": {"name": "muonclip"}}, "model": {"ngpt": True}},
            r"longer_context\.optimizer\.name: muonclip scales queries and keys, which model\.ngpt \(True\) normalises",
        ),
        *LOW_PRECISION,
        ({"traner": {}}, r"traner: unknown section"),
        ({"seed": -1}, r"seed: -1"),
    ],
)
def test_contradictions_name_both_keys(tmp_path, change, message):
    with pytest.raises(PipelineError, match=message):
        validate(changed(tmp_path, change))
