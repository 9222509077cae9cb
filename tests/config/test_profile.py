"""Profiles: what they write into params.yaml, what they leave, and what they say."""

import re
import shutil
from itertools import permutations
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from neobert.config.load import read_params
from neobert.config.longer_context import LongerContextConfig
from neobert.config.profile import Data, apply_profile, main
from neobert.config.schema import fields
from neobert.config.validate import validate
from neobert.errors import PipelineError
from tests.config.test_params_file import ROOT, changed

PROFILES = sorted(p.stem for p in (ROOT / "profiles").glob("*.yaml"))


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_apply_and_keep_comments(tmp_path, name):
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    apply_profile(name, ROOT / "profiles", path)
    validate(path)
    comments = [line for line in (ROOT / "params.yaml").read_text().splitlines() if line.startswith("#")]
    assert comments
    assert all(line in path.read_text() for line in comments)
    sections = lambda text: re.findall(r"^#[^\n]*\n(?=\w+:)[^:]+", text, re.MULTILINE)  # noqa: E731
    assert sections(path.read_text()) == sections((ROOT / "params.yaml").read_text()), "a comment left its section"
    profile = YAML(typ="safe", pure=True).load((ROOT / "profiles" / f"{name}.yaml").read_text())
    assert read_params(path)["model"]["num_hidden_layers"] == profile["model"]["num_hidden_layers"]


MINING = {"method": "bm25", "num_negatives": 2}
OWN_DATA = {
    "corpus": {"source": "files", "files": ["data/raw/articles/*.jsonl"], "text_column": "body"},
    "tokenizer": {"vocab_size": 9000},
    "contrastive_data": {
        "sources": {"ALLNLI": {"hub": "ALLNLI"}},
        "mine_negatives": MINING,
        "decontaminate": ["data/raw/faq_search"],
    },
    "evaluation": {
        "tasks": [{"name": "faq_search", "type": "retrieval", "path": "data/raw/faq_search"}],
        "headline": "faq_search",
        "benchmarks": [],
    },
}


@pytest.mark.parametrize("name", ["neobert-100m", "neobert-250m"])
def test_a_profile_keeps_the_data_that_is_not_the_default(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "profiles", "profiles")
    Path("data/raw/faq_search").mkdir(parents=True)
    before = read_params(changed(tmp_path, OWN_DATA))
    monkeypatch.setattr("sys.argv", ["profile", name])
    main()
    after = read_params()
    assert after["model"]["hidden_size"] == 768
    assert after["evaluation"]["mixed_precision"] == "bf16"
    assert (after["corpus"], after["tokenizer"]) == (before["corpus"], before["tokenizer"])
    for section in ("contrastive_data", "evaluation"):
        assert {key: after[section][key] for key in OWN_DATA[section]} == OWN_DATA[section]
    said = capsys.readouterr().out
    assert "kept your data" in said
    assert all(
        key in said for key in ("corpus.hub", "tokenizer.name_or_path", "sources", "mine_negatives", "evaluation.tasks")
    ), said


def test_a_profile_says_which_default_data_it_replaces(tmp_path):
    path = changed(tmp_path, {"evaluation": {"benchmarks": ["MTEB(eng, v2)"]}})
    mined = "contrastive_data.mine_negatives"
    assert apply_profile("embedded-gpu", ROOT / "profiles", path) == Data(kept=[], replaced=[mined])
    applied = apply_profile("neobert-100m", ROOT / "profiles", path)
    assert applied.kept == []
    assert {"corpus.source", "contrastive_data.sources", mined, "evaluation.tasks"} < set(applied.replaced)
    assert "evaluation.benchmarks" not in applied.replaced, "it was the same"
    assert read_params(path)["corpus"]["source"] == "hub"


def test_a_size_for_the_default_data_is_refused_with_other_data(tmp_path):
    path = changed(tmp_path, {})
    apply_profile("neobert-100m", ROOT / "profiles", path)
    before = path.read_bytes()
    with pytest.raises(PipelineError, match=r"embedded-gpu\.yaml: .* corpus\.source is hub; .*git checkout"):
        apply_profile("embedded-gpu", ROOT / "profiles", path)
    assert path.read_bytes() == before


def test_an_invalid_profile_leaves_params_untouched(tmp_path):
    (tmp_path / "bad.yaml").write_text("model: {num_hidden_layers: many}\n")
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    with pytest.raises(PipelineError, match=r"model\.num_hidden_layers: 'many'"):
        apply_profile("bad", tmp_path, path)
    assert path.read_bytes() == (ROOT / "params.yaml").read_bytes()
    with pytest.raises(PipelineError, match="there are bad"):
        apply_profile("missing", tmp_path, path)
    path.write_bytes("seed: 7  # réglages\n".encode("latin-1"))
    with pytest.raises(PipelineError, match=r"params\.yaml:1: is not UTF-8"):
        apply_profile("bad", tmp_path, path)


def leaves(values, prefix=""):
    """Dotted keys of all values."""
    for key, value in values.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


# What one phase alone sets, on purpose: a mixture needs long rows, and the paper's second phase has a constant rate.
FIRST_ONLY = {name: {"scheduler.decay_percent", "scheduler.final_lr_ratio"} for name in PROFILES if "neobert" in name}
SECOND_ONLY = {"packing.length_mixture"}


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_says_of_both_phases_what_it_says_of_one(name):
    keys = set(leaves(read_params(ROOT / "profiles" / f"{name}.yaml")))
    second = {key.removeprefix("longer_context.") for key in keys if key.startswith("longer_context.")}
    twins = {field.name for field in fields(LongerContextConfig)} - {"pretrained_from"}
    first = {key for key in keys if key.split(".")[0] in twins}
    assert first - second == FIRST_ONLY.get(name, set())
    assert second - first <= SECOND_ONLY


@pytest.mark.parametrize("name", ["neobert-100m", "neobert-250m"])
def test_the_papers_masking_is_that_of_both_phases(tmp_path, name):
    path = changed(tmp_path, {})
    apply_profile(name, ROOT / "profiles", path)
    params = read_params(path)
    assert (
        params["datacollator"] == params["longer_context"]["datacollator"] == {"mlm_probability": 0.2, "mask_all": True}
    )


@pytest.mark.parametrize(("before", "name"), [(a, b) for a, b in permutations(PROFILES, 2) if b != "embedded-gpu"])
def test_a_profile_is_the_recipe_it_names_whichever_was_applied_before(tmp_path, before, name):
    """embedded-gpu is no second one: where another has replaced the default data, it is refused."""
    alone, after = changed(tmp_path, {}), tmp_path / "after.yaml"
    shutil.copy(alone, after)
    apply_profile(name, ROOT / "profiles", alone)
    for each in (before, name):
        apply_profile(each, ROOT / "profiles", after)
    assert read_params(after) == read_params(alone)
