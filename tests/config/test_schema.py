"""Strict parsing: every problem is reported with its dotted key, the value and the rule."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from neobert.config.load import load, load_seed, read_params
from neobert.config.schema import Bounds, fields, parse
from neobert.errors import PipelineError


@dataclass(frozen=True)
class Inner:
    steps: Annotated[int, "How many.", Bounds(gt=0)] = 1


@dataclass(frozen=True)
class Example:
    lr: Annotated[float, "Peak rate.", Bounds(gt=0)] = 1e-3
    mode: Annotated[Literal["no", "bf16"], "Precision."] = "no"
    inner: Annotated[Inner, "Nested."] = field(default_factory=Inner)
    names: Annotated[list[str], "Names."] = field(default_factory=list)
    shares: Annotated[list[float], "Shares."] = field(default_factory=list)
    limit: Annotated[int | None, "Limit.", Bounds(ge=1)] = None
    on: Annotated[bool, "Switch."] = False

    def problems(self):
        if self.mode == "bf16" and self.limit:
            yield "limit", "must be null with mode bf16"


def problems_of(value):
    found: list[str] = []
    parse(Example, value, "example", found)
    return found


def test_defaults_and_values():
    found: list[str] = []
    example = parse(Example, {"lr": 1, "inner": {"steps": 3}, "names": ["a"], "limit": 2}, "example", found)
    assert not found
    assert example == Example(lr=1.0, inner=Inner(3), names=["a"], limit=2)
    assert isinstance(example.lr, float)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"lrr": 1}, "example.lrr: unknown key; known keys are lr, mode, inner, names, shares, limit, on"),
        ({"lr": "2e-5"}, "example.lr: '2e-5' is not a number"),
        ({"lr": 0}, "example.lr: 0.0 must be more than 0"),
        ({"lr": float("inf")}, "example.lr: inf must be finite"),
        ({"shares": [0.5, float("nan")]}, "example.shares[1]: nan must be finite"),
        ({"lr": True}, "example.lr: True is not a number"),
        ({"mode": "fp16"}, "example.mode: 'fp16' is not one of no, bf16"),
        ({"inner": {"steps": 1.5}}, "example.inner.steps: 1.5 is not an integer"),
        ({"inner": 3}, "example.inner: 3 is not a section (a mapping of keys to values)"),
        ({"names": [1]}, "example.names[0]: 1 is not a string"),
        ({"limit": 0}, "example.limit: 0 must be at least 1"),
        ({"on": "yes"}, "example.on: 'yes' is not true or false"),
        ({"mode": "bf16", "limit": 2}, "example.limit: 2 must be null with mode bf16"),
    ],
)
def test_each_problem_names_key_value_and_rule(value, message):
    assert problems_of(value) == [message]


def test_all_problems_at_once():
    assert len(problems_of({"lr": -1, "mode": "x", "inner": {"steps": 0}, "what": 1})) == 4


def test_yaml_12_numbers_and_words(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 7\nexample: {lr: 2e-05, mode: no}\n")
    assert load(Example, "example", path) == Example(lr=2e-5, mode="no")
    assert load_seed(path) == 7
    assert load(Inner, "example.inner", path) == Inner()


def test_unreadable_files(tmp_path):
    with pytest.raises(PipelineError, match="does not exist"):
        read_params(tmp_path / "params.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\n")
    with pytest.raises(PipelineError, match="line"):
        read_params(broken)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"seed: 7\n" * 5000 + "# réglages\n".encode("latin-1"))
    with pytest.raises(PipelineError, match=r"latin\.yaml:5001: is not UTF-8 \(byte 0xe9\); save the file as UTF-8"):
        read_params(latin)


def test_fields_carry_their_sentence():
    assert [f.doc for f in fields(Example)] == [
        "Peak rate.",
        "Precision.",
        "Nested.",
        "Names.",
        "Shares.",
        "Limit.",
        "Switch.",
    ]
