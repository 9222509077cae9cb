"""Prefetching keeps order and raises in turn; settings follow from the host and are clamped with a warning."""

import logging
import threading
import time

import pytest

from neobert.packing.loader import LoaderSettings, advise_on_shards, loader_settings, prefetch


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order_is_kept(workers):
    def make(step):
        time.sleep(0.002 * (step % 3))  # later ones are often ready first
        return step

    assert list(prefetch(make, 5, 40, workers, 2)) == list(range(5, 40))
    assert list(prefetch(make, 5, 5, workers, 2)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_at_its_turn(workers):
    def make(step):
        if step == 3:
            raise ValueError("three")
        return step

    ready = prefetch(make, 0, 10, workers, 2)
    assert [next(ready) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(ready)


def test_no_more_is_made_than_asked_for_and_threads_end():
    made = []
    ready = prefetch(lambda step: made.append(step) or step, 0, 1000, 2, 3)
    assert next(ready) == 0
    time.sleep(0.05)
    assert len(made) <= 2 * 3 + 1
    ready.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def settings(*runtime, **host):
    return loader_settings(*runtime, **{"gpu": False, "ranks_on_host": 1, "cores": 8, **host})


def test_unset_values_follow_from_the_host():
    assert settings(None, None, None, None) == LoaderSettings(2, 2, False, True)
    assert settings(None, None, None, None, gpu=True, ranks_on_host=8) == LoaderSettings(1, 2, True, True)
    assert settings(None, None, None, None, cores=1) == LoaderSettings(1, 2, False, True)
    assert settings(0, 5, False, False, gpu=True) == LoaderSettings(0, 5, False, False)


@pytest.mark.parametrize(
    ("runtime", "expected", "key"),
    [
        ((9, None, None, None), LoaderSettings(4, 2, False, True), "num_workers"),
        ((1, None, True, None), LoaderSettings(1, 2, False, True), "pin_memory"),
        ((0, None, None, True), LoaderSettings(0, 2, False, False), "persistent_workers"),
    ],
)
def test_what_cannot_work_is_clamped_with_a_warning(runtime, expected, key, caplog):
    assert settings(*runtime, ranks_on_host=2) == expected
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"runtime.{key}" in caplog.text


def test_fewer_shards_than_ranks_get_guidance(caplog):
    with caplog.at_level(logging.INFO):
        advise_on_shards(4, 4)
        assert not caplog.text
        advise_on_shards(1, 4)
    assert "1 shard(s) for 4 ranks" in caplog.text
    assert "documents_per_shard" in caplog.text
