"""Exact rates at the corners of every schedule, and what cannot be a schedule."""

import math

import pytest

from neobert.config.scheduler import SchedulerConfig
from neobert.config.schema import parse
from neobert.training.schedule import extends, multiplier
from tests.training import tiny


def rates(steps, max_steps=100, **config):
    return [multiplier(step, SchedulerConfig(**config), max_steps) for step in steps]


COSINE, AN_EIGHTIETH = math.cos(math.pi / 80), 1 / 80
COURSES = {
    # name: (config, {step: rate}); 100 steps, 10 of warmup and 80 of decay where there is one
    "cosine": (
        {"name": "cosine", "warmup_steps": 10, "decay_steps": 80, "final_lr_ratio": 0.1},
        {0: 1 / 11, 9: 10 / 11, 10: 1, 11: 0.1 + 0.45 * (1 + COSINE), 50: 0.55, 90: 0.1, 91: 0.1},
    ),
    "linear": (
        {"name": "linear", "warmup_percent": 10, "decay_percent": 80, "final_lr_ratio": 0.2},
        {0: 1 / 11, 9: 10 / 11, 10: 1, 11: 1 - 0.8 * AN_EIGHTIETH, 50: 0.6, 90: 0.2, 91: 0.2},
    ),
    "wsd": (
        {"name": "wsd", "warmup_steps": 10, "decay_steps": 80, "final_lr_ratio": 0.0},
        {0: 1 / 11, 9: 10 / 11, 10: 1, 20: 1, 21: 1 - AN_EIGHTIETH, 60: 0.5, 100: 0, 101: 0},
    ),
    "wsd, 1-sqrt": (
        {"name": "wsd", "warmup_percent": 10, "decay_percent": 80, "decay_shape": "1-sqrt", "final_lr_ratio": 0.0},
        {0: 1 / 11, 9: 10 / 11, 10: 1, 20: 1, 21: 1 - math.sqrt(AN_EIGHTIETH), 60: 1 - math.sqrt(0.5), 100: 0, 101: 0},
    ),
    "constant": ({"name": "constant", "warmup_steps": 10}, {0: 1 / 11, 9: 10 / 11, 10: 1, 11: 1, 100: 1, 101: 1}),
    "inverse square root": (
        {"name": "inverse_sqrt", "warmup_steps": 10},
        {0: 1 / 11, 9: 10 / 11, 10: 1, 11: math.sqrt(10 / 11), 40: 0.5, 90: 1 / 3},
    ),
}


@pytest.mark.parametrize("course", COURSES)
def test_rates_at_the_corners(course):
    """At 0, around the end of the warmup, around the start of the decay, halfway, at the decay's end and one beyond."""
    config, expected = COURSES[course]
    assert rates(expected, **config) == pytest.approx(list(expected.values()))


def test_a_decay_without_a_length_takes_what_the_warmup_leaves():
    for name in ("cosine", "linear"):
        found = rates([10, 55, 100, 101], name=name, warmup_steps=10, final_lr_ratio=0.1)
        assert found == pytest.approx([1, 0.55, 0.1, 0.1])


def test_no_warmup_starts_at_the_peak():
    assert rates([0], name="cosine") == [1.0]


def test_a_run_may_be_prolonged_where_its_rates_so_far_would_have_been_the_same():
    wsd = SchedulerConfig(name="wsd", warmup_steps=5, decay_steps=20)
    assert extends(wsd, 70, 100, 200)
    assert not extends(wsd, 90, 100, 200), "the decay had begun"
    assert extends(SchedulerConfig(name="constant"), 100, 100, 200)
    assert not extends(SchedulerConfig(name="cosine"), 50, 100, 200)


@pytest.mark.parametrize(
    "lengths",
    [{"warmup_steps": 50, "decay_steps": 80}, {"warmup_percent": 50, "decay_steps": 51}],
)
def test_a_wsd_whose_warmup_reaches_into_its_decay_ends_it_all_the_same(lengths):
    course = {"name": "wsd", "final_lr_ratio": 0.0, **lengths}
    assert rates([49, 50, 75, 99, 100, 101], **course) == pytest.approx([50 / 51, 1, 0.5, 0.02, 0, 0])
    # Both are rounded up: 2 + 4 steps of 5.
    rounded = rates([1, 2, 4, 5], 5, name="wsd", warmup_percent=30, decay_percent=70, final_lr_ratio=0.0)
    assert rounded == pytest.approx([2 / 3, 1, 1 / 3, 0])
    assert rates([3], 3, name="wsd", warmup_steps=3, decay_steps=1, final_lr_ratio=0.0) == [1]


def refusals(cls, value, key):
    problems: list[str] = []
    parse(cls, value, key, problems)
    return problems


def test_a_key_that_the_course_would_ignore_is_refused():
    for name in ("cosine", "linear", "constant", "inverse_sqrt"):
        assert refusals(SchedulerConfig, {"name": name, "decay_shape": "1-sqrt"}, "scheduler") == [
            f"scheduler.decay_shape: '1-sqrt' has no meaning for scheduler.name {name}; make it linear"
        ]
    assert not refusals(SchedulerConfig, {"name": "wsd", "decay_steps": 5, "decay_shape": "1-sqrt"}, "scheduler")


@pytest.mark.parametrize("name", ["wsd", "cosine", "linear"])
def test_a_decay_that_would_end_after_the_run_is_refused(name):
    course = {"name": name, "warmup_percent": 50}
    (problem,) = refusals(SchedulerConfig, {**course, "decay_percent": 80}, "longer_context.scheduler")
    assert problem.startswith("longer_context.scheduler.decay_percent: 80.0 and warmup_percent (50.0) are more than ")
    assert "at most 100" in problem
    assert not refusals(SchedulerConfig, {**course, "decay_percent": 50}, "scheduler")


@pytest.mark.parametrize(("warmup", "said"), [(3, True), (2, True), (1, False)])
def test_a_run_that_ends_within_its_warmup_says_so(warmup, said, tmp_path, caplog):
    tiny.run(tmp_path, {"max_steps": 2}, scheduler={"name": "cosine", "warmup_steps": warmup})
    assert ("no step is left after the warmup" in caplog.text) is said
