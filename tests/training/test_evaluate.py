"""Evaluation during training: fixed masks, each source and all of them, any batch size."""

import numpy as np
import pytest

from neobert.training.evaluate import evaluator, groups_of, spread
from tests.training import tiny


def test_figures_do_not_depend_on_the_batch_size_and_masks_never_change():
    objective, source, rows = tiny.objective().eval(), tiny.source(), np.arange(10)
    first = evaluator(source, {"": rows}, 4)(objective, 0)
    assert first == evaluator(source, {"": rows}, 4)(objective, 99)
    other = evaluator(source, {"": rows}, 3)(objective, 0)
    assert first.keys() == {"loss", "perplexity", "accuracy"}
    assert first == pytest.approx(other, rel=1e-5)
    assert first["perplexity"] == pytest.approx(np.exp(first["loss"]))


def test_each_source_is_reported_and_their_rows_make_up_the_whole():
    objective, source, rows = tiny.objective().eval(), tiny.source(), np.arange(12)
    groups = groups_of(rows, {"web": [(0, 4), (9, 12)], "code": [(4, 9)], "absent": [(50, 60)]})
    assert {k: v.tolist() for k, v in groups.items()} == {"web": [0, 1, 2, 3, 9, 10, 11], "code": [4, 5, 6, 7, 8]}
    figures = evaluator(source, groups, 4)(objective, 0)
    assert figures["loss"] == pytest.approx(evaluator(source, {"": rows}, 4)(objective, 0)["loss"], rel=1e-5)
    alone = evaluator(source, {"": groups["code"]}, 4)(objective, 0)
    assert figures["loss_code"] == pytest.approx(alone["loss"], rel=1e-6)
    assert figures["accuracy_web"] >= 0
    assert groups_of(rows, {"only": [(0, 12)]}).keys() == {""}


def test_rows_are_spread_over_the_whole_split():
    assert spread(100, 4).tolist() == [0, 25, 50, 75]
    assert spread(3, 10).tolist() == [0, 1, 2]
