"""Exact rates at the corners of every schedule."""

import math

import pytest

from neobert.config.scheduler import SchedulerConfig
from neobert.training.schedule import extends, multiplier


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
