"""The protocol, on callables whose behaviour is known."""

from __future__ import annotations

import gc
import itertools
import time

import numpy as np
import pytest

from edgecsi import verdict
from edgecsi.bench import measure
from edgecsi.device.protocol import MeasuringProtocol
from edgecsi.errors import CheckFailed

TINY = MeasuringProtocol(
    quick=True, samples=20, seconds=0.001, limit=2.0, turn=0.0005, cold_samples=3, cold_starts=1
)


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_engines_take_turns_and_every_call_is_a_sample() -> None:
    order: list[str] = []
    updates: list[tuple[float, float, str]] = []
    series = measure.interleave(
        {"a": lambda: order.append("a"), "b": lambda: (order.append("b"), spin(1e-4))},
        TINY,
        lambda *update: updates.append(update),
    )
    assert len(series["a"].rounds) == len(series["b"].rounds) > 1
    assert series["a"].samples.size >= TINY.samples
    assert series["b"].samples.size >= TINY.samples
    assert all(turn.size >= TINY.turn_calls for one in series.values() for turn in one.rounds)
    assert np.median(series["b"].samples) >= 1e5
    assert [one.cold.size for one in series.values()] == [3, 3]
    # A B A B: the engines change at least twice per round.
    changes = sum(first != second for first, second in itertools.pairwise(order))
    assert changes >= 2 * len(series["a"].rounds)
    assert updates[0][2] == "warming up a"
    assert updates[-1][2] == "measuring with a cold L2"


def test_a_slow_engine_ends_at_the_limit_and_says_so() -> None:
    protocol = MeasuringProtocol(quick=True, samples=1000, seconds=0.01, limit=0.05, cold_samples=1)
    series = measure.interleave({"slow": lambda: time.sleep(0.01)}, protocol)
    assert not series["slow"].complete
    assert 5 <= series["slow"].samples.size < 1000


def test_warm_up_waits_for_a_steady_median_and_gives_up_otherwise() -> None:
    settled, median = measure.warm_up(lambda: spin(5e-5), block=0.002)
    assert settled
    assert median >= 5e4
    slower = iter(1.2**step for step in range(200))
    settled, _ = measure.warm_up(lambda: spin(1e-6 * next(slower)), block=0.0001, limit=0.05)
    assert not settled


def test_the_collector_rests_while_measuring_and_works_afterwards() -> None:
    seen: set[bool] = set()
    measure.interleave({"a": lambda: seen.add(gc.isenabled())}, TINY)
    assert seen == {False}
    assert gc.isenabled()


def test_cpu_time_tells_how_many_threads_an_engine_used() -> None:
    series = measure.interleave({"one": lambda: spin(2e-4), "idle": lambda: time.sleep(2e-4)}, TINY)
    assert 0.3 < series["one"].threads < 1.1
    assert series["idle"].threads < 0.6


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (np.array([1.0, 2.1], np.float32), "differs from PyTorch"),
        (np.array([1.0, np.nan], np.float32), "differs from PyTorch"),
        (np.array([[1.0, 2.0]], np.float32), "shape"),
    ],
)
def test_a_wrong_answer_is_not_timed(output: np.ndarray, words: str) -> None:
    with pytest.raises(CheckFailed, match=words):
        verdict.require("engine", output, np.array([1.0, 2.0], np.float32), 1e-4)


def test_a_right_answer_tells_how_right() -> None:
    found = verdict.require("engine", np.array([1.0, 2.0001], np.float32), np.array([1, 2], np.float32), 1e-4)
    assert found.max_rel_diff == pytest.approx(5e-5, rel=0.01)
