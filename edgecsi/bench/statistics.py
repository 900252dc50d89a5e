"""Statistics of latencies: what may be said about a series of samples, and with which confidence.

Latencies are not independent: neighbouring calls share the machine's mood. Every interval here is therefore a
block bootstrap (H. R. Künsch, "The jackknife and the bootstrap for general stationary observations",
Annals of Statistics 17, 1989): contiguous blocks of samples are resampled, not single samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgecsi.errors import UsageError

CONFIDENCE = 0.95
BLOCKS = 200
RESAMPLES = 1000
NEEDED = {99.0: 1_000, 99.9: 10_000}
"""Percentile → samples below which it is refused: with fewer, a handful of calls would decide it."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval, in the unit of what it belongs to."""

    low: float
    high: float


@dataclass(frozen=True)
class Outliers:
    """Samples above the upper quartile plus three interquartile ranges (Tukey's "far out"); counted,
    never dropped.

    ``limit`` and ``largest`` are in the unit of the samples; ``largest`` equals the maximum when
    ``count`` > 0.
    """

    count: int
    share: float
    limit: float
    largest: float | None


@dataclass(frozen=True)
class Summary:
    """What is reported of one series; all times in the unit of the samples.

    ``p99`` and ``p999`` are None when there are too few samples to say (see :data:`NEEDED`).
    """

    samples: int
    median: float
    interval: Interval
    p90: float
    p95: float
    p99: float | None
    p999: float | None
    minimum: float
    maximum: float
    outliers: Outliers


@dataclass(frozen=True)
class Ratio:
    """How the time of one series compares with another's: below 1 is faster. ``rounds`` were compared."""

    ratio: float
    interval: Interval
    rounds: int


def percentile(samples: ArrayLike, q: float) -> float:
    """The ``q``-th percentile (0 to 100), as a value that was really measured (inverted CDF).

    Raises:
        UsageError: too few samples for this percentile (1,000 for p99, 10,000 for p99.9), or none at all.
    """
    values = _checked(samples)
    needed = max((count for level, count in NEEDED.items() if q >= level), default=1)
    if values.size < needed:
        raise UsageError(
            f"the {q:g}th percentile of {values.size} samples is not reported",
            f"it takes at least {needed:,} samples to be more than the luck of a few calls",
            "measure longer (without --quick), or read a lower percentile",
        )
    return float(np.percentile(values, q, method="inverted_cdf"))


def median_interval(samples: ArrayLike, seed: int = 0) -> Interval:
    """The 95 % block-bootstrap interval of the median, deterministic for a given ``seed``.

    Args:
        samples: in the order they were measured; up to millions.
        seed: of the resampling.
    """
    values = _checked(samples)
    # Resampled medians are looked up on a grid of order statistics, dense around the median: the cost
    # does not grow with the number of samples beyond one histogram per block.
    levels = np.unique(np.concatenate([np.linspace(0, 1, 401), np.linspace(0.4, 0.6, 2001)]))
    grid = np.unique(np.quantile(values, levels, method="inverted_cdf"))
    blocks = np.array_split(values, min(BLOCKS, values.size))
    below = np.stack([np.searchsorted(np.sort(block), grid, side="right") for block in blocks]).astype(float)
    sizes = np.array([block.size for block in blocks], dtype=float)
    generator = np.random.default_rng(seed)
    times_drawn = generator.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)), size=RESAMPLES)
    half = (times_drawn @ sizes / 2)[:, None]
    medians = grid[np.argmax(times_drawn @ below >= half, axis=1)]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(medians, [tail, 100 - tail])
    # With an even number of samples the median lies between two of them.
    middle = float(np.median(values))
    return Interval(min(float(low), middle), max(float(high), middle))


def outliers(samples: ArrayLike) -> Outliers:
    """Counts the samples far above the rest, see :class:`Outliers`."""
    values = _checked(samples)
    lower, upper = np.percentile(values, [25, 75])
    limit = float(upper + 3 * (upper - lower))
    far = values[values > limit]
    return Outliers(int(far.size), far.size / values.size, limit, float(far.max()) if far.size else None)


def summarise(samples: ArrayLike, seed: int = 0) -> Summary:
    """All that is reported of one series.

    Args:
        samples: latencies in the order they were measured, any unit.
        seed: of the bootstrap.

    Raises:
        UsageError: there are no samples, or one is not a finite number.
    """
    values = _checked(samples)
    return Summary(
        samples=int(values.size),
        median=float(np.median(values)),
        interval=median_interval(values, seed),
        p90=percentile(values, 90),
        p95=percentile(values, 95),
        p99=percentile(values, 99) if values.size >= NEEDED[99.0] else None,
        p999=percentile(values, 99.9) if values.size >= NEEDED[99.9] else None,
        minimum=float(values.min()),
        maximum=float(values.max()),
        outliers=outliers(values),
    )


def ratio(series: list[Floats], reference: list[Floats], seed: int = 0) -> Ratio:
    """Time of ``series`` over time of ``reference``, both measured in turns A B A B.

    Each round gives one ratio of medians, so what disturbs a whole round cancels; the result is the
    median over the rounds and its interval.

    Args:
        series: one array of samples per round.
        reference: the same rounds of the engine compared with.
        seed: of the bootstrap.

    Raises:
        UsageError: the two were not measured in the same rounds.
    """
    if len(series) != len(reference) or not series:
        raise UsageError(
            f"{len(series)} and {len(reference)} rounds cannot be compared",
            "a ratio needs both engines measured in the same rounds",
            "measure them in one interleaved run",
        )
    ratios = np.array([np.median(a) / np.median(b) for a, b in zip(series, reference, strict=True)])
    return Ratio(float(np.median(ratios)), median_interval(ratios, seed), len(series))


def agree(first: float, second: float, tolerance: float = 0.02) -> bool:
    """Whether two medians differ by at most ``tolerance`` of the smaller one."""
    return abs(first - second) <= tolerance * min(first, second)


def _checked(samples: ArrayLike) -> Floats:
    values = np.asarray(samples, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise UsageError(
            "no statistics without samples" if values.size == 0 else "a sample is not a finite number",
            "a series must hold at least one measured time",
            "measure again",
        )
    return values
