"""Exact rates at the corners of every schedule."""

import math

import pytest

from neobert.config.scheduler import SchedulerConfig
from neobert.training.schedule import extends, multiplier


def rates(steps, max_steps=100, **config):
    return [multiplier(step, SchedulerConfig(**config), max_steps) for step in steps]


def test_cosine():
    config = {"name": "cosine", "warmup_steps": 10, "final_lr_ratio": 0.1}
    assert rates([0, 9, 10, 55, 100, 101], **config) == pytest.approx([1 / 11, 10 / 11, 1, 0.55, 0.1, 0.1])


def test_linear_with_decay_steps_stays_at_its_end():
    config = {"name": "linear", "warmup_steps": 10, "decay_steps": 40, "final_lr_ratio": 0.0}
    assert rates([0, 10, 30, 50, 51, 99], **config) == pytest.approx([1 / 11, 1, 0.5, 0, 0, 0])


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_wsd(shape):
    config = {"name": "wsd", "warmup_percent": 10, "decay_percent": 20, "final_lr_ratio": 0.0, "decay_shape": shape}
    middle = 0.5 if shape == "linear" else 1 - math.sqrt(0.5)
    assert rates([0, 10, 80, 90, 100, 101], **config) == pytest.approx([1 / 11, 1, 1, middle, 0, 0])


def test_constant_and_inverse_square_root():
    assert rates([0, 3, 4, 50], name="constant", warmup_steps=4) == pytest.approx([0.2, 0.8, 1, 1])
    assert rates([0, 4, 16, 64], name="inverse_sqrt", warmup_steps=4) == pytest.approx([0.2, 1, 0.5, 0.25])


def test_no_warmup_starts_at_the_peak():
    assert rates([0], name="cosine") == [1.0]


def test_a_run_may_be_prolonged_where_its_rates_so_far_would_have_been_the_same():
    wsd = SchedulerConfig(name="wsd", warmup_steps=5, decay_steps=20)
    assert extends(wsd, 70, 100, 200)
    assert not extends(wsd, 90, 100, 200), "the decay had begun"
    assert extends(SchedulerConfig(name="constant"), 100, 100, 200)
    assert not extends(SchedulerConfig(name="cosine"), 50, 100, 200)
