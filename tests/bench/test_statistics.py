"""What is said about a series of samples, against distributions whose answers are known."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgecsi.bench import statistics
from edgecsi.errors import UsageError


def latencies(count: int, seed: int = 0) -> np.ndarray:
    """Log-normal with median 100, as latencies look."""
    return 100 * np.exp(np.random.default_rng(seed).normal(0, 0.1, count))


def test_the_median_and_percentiles_are_those_of_the_distribution() -> None:
    summary = statistics.summarise(latencies(20_000))
    assert summary.median == pytest.approx(100, rel=0.01)
    assert summary.p90 == pytest.approx(100 * np.exp(0.1 * 1.2816), rel=0.01)
    assert summary.p95 == pytest.approx(100 * np.exp(0.1 * 1.6449), rel=0.01)
    assert summary.p99 == pytest.approx(100 * np.exp(0.1 * 2.3263), rel=0.02)
    assert summary.p999 == pytest.approx(100 * np.exp(0.1 * 3.0902), rel=0.05)
    assert summary.minimum < summary.median < summary.maximum


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    intervals = [statistics.median_interval(latencies(300, seed)) for seed in range(100)]
    covered = sum(interval.low <= 100 <= interval.high for interval in intervals)
    assert 88 <= covered <= 100


def correlated(rho: float, count: int, trials: int, seed: int = 0) -> np.ndarray:
    """``[trials, count]``: series around 0 whose neighbours correlate by ``rho`` (AR(1)), as rounds do."""
    generator = np.random.default_rng(seed)
    series = generator.normal(0, 1, (trials, count))
    series[:, 0] /= np.sqrt(1 - rho**2)
    for index in range(1, count):
        series[:, index] += rho * series[:, index - 1]
    return series


@pytest.mark.parametrize("rho", [0.5, 0.9])
@pytest.mark.parametrize("rounds", [400, 2000])
def test_intervals_cover_as_often_as_they_say_when_rounds_correlate(rho: float, rounds: int) -> None:
    trials = 400
    ratios = 0.3 * np.exp(0.01 * correlated(rho, rounds, trials))
    found = [statistics.median_interval(one, seed) for seed, one in enumerate(ratios)]
    covered = sum(interval.low <= 0.3 <= interval.high for interval in found)
    assert covered / trials >= 0.92


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_intervals_of_a_high_percentile_cover_it(rho: float) -> None:
    truth = 2.3263 / np.sqrt(1 - rho**2)
    intervals = [statistics.quantile_interval(one, 99) for one in correlated(rho, 2000, 400)]
    assert sum(found.low <= truth <= found.high for found in intervals) >= 0.92 * 400


def test_blocks_are_as_long_as_the_samples_hang_together() -> None:
    lengths = [
        np.mean([statistics.block_length(one) for one in correlated(rho, 1000, 20)]) for rho in (0, 0.5, 0.9)
    ]
    assert lengths[0] < 8
    assert lengths[0] < lengths[1] / 2 < lengths[2] / 4
    assert statistics.block_length(np.ones(100)) == 1
    assert 1 <= statistics.block_length([1.0, 2.0]) <= 2


def test_millions_of_samples_take_no_time() -> None:
    begin = time.process_time()
    found = statistics.median_interval(latencies(2_000_000))
    assert time.process_time() - begin < 5
    assert found.low < 100 < found.high


def test_the_interval_is_wider_when_neighbours_share_their_mood() -> None:
    generator = np.random.default_rng(1)
    independent = generator.normal(100, 5, 2000)
    moods = np.repeat(generator.normal(100, 5, 100), 20)
    widths = [
        interval.high - interval.low
        for interval in (statistics.median_interval(independent), statistics.median_interval(moods))
    ]
    assert widths[1] > 2 * widths[0]


def test_the_interval_is_the_same_for_the_same_samples_and_contains_the_median() -> None:
    samples = latencies(501)
    first, second = statistics.median_interval(samples), statistics.median_interval(samples)
    assert first == second
    assert first.low <= np.median(samples) <= first.high
    assert statistics.median_interval([7.0]) == statistics.Interval(7.0, 7.0)


@pytest.mark.parametrize(("level", "needed"), [(99.0, 1_000), (99.9, 10_000)])
def test_high_percentiles_need_enough_samples(level: float, needed: int) -> None:
    assert statistics.percentile(latencies(needed), level) > 100
    with pytest.raises(UsageError, match="percentile"):
        statistics.percentile(latencies(needed - 1), level)
    summary = statistics.summarise(latencies(needed - 1))
    assert (summary.p99 if level == 99 else summary.p999) is None


def test_a_percentile_is_a_time_that_was_measured() -> None:
    samples = latencies(57)
    assert statistics.percentile(samples, 90) in samples


def test_outliers_are_counted_and_kept() -> None:
    samples = np.concatenate([np.linspace(99, 101, 997), [500.0, 600.0, 10_000.0]])
    found = statistics.outliers(samples)
    assert (found.count, found.largest) == (3, 10_000.0)
    summary = statistics.summarise(samples)
    assert summary.samples == 1000
    assert summary.maximum == 10_000.0
    assert statistics.outliers(np.linspace(99, 101, 1000)).largest is None


def test_a_ratio_of_interleaved_series_survives_a_drifting_machine() -> None:
    generator = np.random.default_rng(0)
    drift = np.linspace(1, 3, 200)
    fast = [speed * generator.normal(30, 1, 20) for speed in drift]
    slow = [speed * generator.normal(100, 3, 6) for speed in drift]
    ratio = statistics.ratio(fast, slow)
    assert ratio.ratio == pytest.approx(0.30, rel=0.01)
    assert ratio.interval.low < 0.30 < ratio.interval.high
    assert ratio.interval.high - ratio.interval.low < 0.01
    assert ratio.rounds == 200


def test_series_of_different_rounds_are_not_compared() -> None:
    with pytest.raises(UsageError, match="rounds"):
        statistics.ratio([np.ones(3)], [np.ones(3), np.ones(3)])


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")]])
def test_no_statistics_of_nothing(samples: list[float]) -> None:
    with pytest.raises(UsageError):
        statistics.summarise(samples)


def test_medians_agree_within_two_percent() -> None:
    assert statistics.agree(100, 102)
    assert not statistics.agree(100, 102.1)
