"""Statistics of latencies: what may be said about a series of samples, and with which confidence.

Latencies are not independent: neighbouring calls share the machine's mood. Every interval here is therefore a
block bootstrap (H. R. Künsch, "The jackknife and the bootstrap for general stationary observations",
Annals of Statistics 17, 1989): contiguous, overlapping blocks of samples are resampled, not single samples,
and how long the blocks are is read off the samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgecsi.errors import UsageError

CONFIDENCE = 0.95
CELLS = 2000
"""Longer series are resampled in so many cells of neighbours."""
RESAMPLES = 1000
PLACEMENT = 0.003
"""Relative difference, in 95 of 100 cases, between two loads of one library in one process: where their memory came
to lie, the same all the run long (``python -m edgecsi.results.self_check`` measures it)."""
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
    """The 95 % interval of the median, see :func:`quantile_interval`."""
    return quantile_interval(samples, 50.0, seed)


def quantile_interval(samples: ArrayLike, q: float, seed: int = 0) -> Interval:
    """The 95 % interval of the ``q``-th percentile, deterministic for a given ``seed``.

    The share of samples at most as slow as the percentile is a mean, and a mean of dependent values is what
    the block bootstrap is good at. Its interval, read back through the samples' own distribution, is the
    percentile's (R. S. Woodruff, "Confidence intervals for medians and other position measures", JASA 47,
    1952). Few blocks know little of how they vary: the interval is widened as Student's t is against the
    normal distribution, with one degree of freedom a block in which there is something of the rarer side: of a high
    percentile the blocks without a slow call tell nothing.

    Args:
        samples: in the order they were measured; up to millions.
        q: 0 to 100.
        seed: of the resampling.
    """
    values = _checked(samples)
    middle = float(np.median(values)) if q == 50 else float(np.percentile(values, q, method="inverted_cdf"))
    # Half of those that equal the percentile count as below it.
    below = ((values < middle) + 0.5 * (values == middle)).astype(np.float64)
    # Long series are looked at in cells of neighbours: the cost no longer grows, and no dependence is lost.
    cells = below if below.size <= CELLS else np.array([cell.mean() for cell in np.array_split(below, CELLS)])
    count, length = cells.size, block_length(cells)
    around = np.concatenate(
        [[0.0], np.cumsum(np.concatenate([cells, cells[:length]]))]
    )  # a circle: no end is rare
    blocks = around[length : length + count] - around[:count]
    drawn = np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, math.ceil(count / length)))
    shares = blocks[drawn].sum(axis=1) / (drawn.shape[1] * length)
    tail = 100 * (1 - CONFIDENCE) / 2
    rarer = blocks if q < 50 else length - blocks
    telling = count / length * float((rarer > 0).mean())
    wider = _student(telling - 1) / math.sqrt(1 - length / (count + 1))
    low, high = q / 100 + wider * (np.percentile(shares, [tail, 100 - tail]) - cells.mean())
    ends = np.quantile(values, np.clip([low, high], 0, 1), method="inverted_cdf")
    # With an even number of samples the median lies between two of them.
    return Interval(min(float(ends[0]), middle), max(float(ends[1]), middle))


def block_length(series: ArrayLike) -> int:
    """How long the blocks of a bootstrap of the mean should be, from the data.

    D. N. Politis and H. White, "Automatic block-length selection for the dependent bootstrap", Econometric
    Reviews 23, 2004 (with the correction of 2009), for circular blocks: the autocorrelations that stand out
    of the noise decide. Their length makes the estimated variance as good as it can be; it is then still too
    small more often than not. Twice that length errs less on the side that makes intervals too narrow, as
    simulations show (``tests/bench/test_statistics.py``).

    Args:
        series: in the order it was measured.

    Returns:
        1 to a third of the series' length.
    """
    values = _checked(series)
    count = values.size
    most = max(1, count // 3)
    if count < 8 or np.ptp(values) == 0:
        return 1
    looked_at = max(5, math.ceil(math.sqrt(math.log10(count))))
    lags = min(math.ceil(math.sqrt(count)) + looked_at, count - 1)
    spectrum = np.fft.rfft(values - values.mean(), 2 * count)
    covariance = np.fft.irfft(spectrum * spectrum.conj())[: lags + 1] / count
    noise = 2 * math.sqrt(math.log10(count) / count)
    loud = np.flatnonzero(np.abs(covariance[1:]) > noise * covariance[0]) + 1
    # The last lag that stands out before `looked_at` lags in a row that do not.
    last = 0
    for lag in loud:
        if lag - last > looked_at:
            break
        last = int(lag)
    width = min(2 * max(last, 1), lags)
    lags_used = np.arange(1, width + 1)
    taper = np.clip(2 * (1 - lags_used / width), 0, 1)  # flat up to the middle, then down to 0
    weighted = taper * covariance[1 : width + 1]
    longrun = float(covariance[0] + 2 * weighted.sum())
    if longrun <= 0:
        return 1
    bend = 2 * float((lags_used * weighted).sum())
    best = (1.5 * (bend / longrun) ** 2 * count) ** (1 / 3)
    return int(np.clip(math.ceil(2 * best), 1, most))


def _student(freedom: float) -> float:
    """Student's 97.5 % quantile over the normal distribution's (Cornish-Fisher; 1 % at 3 degrees)."""
    z, n = 1.959964, max(freedom, 1.0)
    return 1 + (z**2 + 1) / (4 * n) + (5 * z**4 + 16 * z**2 + 3) / (96 * n**2)


def outliers(samples: ArrayLike) -> Outliers:
    """Counts the samples far above the rest, see :class:`Outliers`."""
    values = _checked(samples)
    lower, upper = np.percentile(values, [25, 75])
    limit = float(upper + 3 * (upper - lower))
    far = values[values > limit]
    return Outliers(int(far.size), far.size / values.size, limit, float(far.max()) if far.size else None)


def summarise(samples: ArrayLike) -> Summary:
    """All that is reported of one series.

    Args:
        samples: latencies in the order they were measured, any unit.

    Raises:
        UsageError: there are no samples, or one is not a finite number.
    """
    values = _checked(samples)
    return Summary(
        samples=int(values.size),
        median=float(np.median(values)),
        interval=median_interval(values),
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
    median over the rounds and its interval. The rounds of one run know neither what another place in memory would
    have cost (:data:`PLACEMENT`) nor what lies between two steps of the clock; the interval has room for both.

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
    middle, interval = float(np.median(ratios)), median_interval(ratios, seed)
    blur = middle * (_resolution(series) + _resolution(reference)) / 2
    low, high = (math.hypot(middle - end, PLACEMENT * middle) for end in (interval.low, interval.high))
    return Ratio(middle, Interval(middle - low - blur, middle + high + blur), len(series))


def _resolution(rounds: list[Floats]) -> float:
    """The smallest step between two samples that differ, over their median; 0 if none do."""
    some = np.unique(np.concatenate(rounds[: max(1, 20_000 // max(1, rounds[0].size))]))
    return float(np.diff(some).min() / np.median(some)) if some.size > 1 else 0.0


def agree(first: float, second: float) -> bool:
    """Whether two medians differ by at most 2 % of the smaller one."""
    return abs(first - second) <= 0.02 * min(first, second)


def _checked(samples: ArrayLike) -> Floats:
    values = np.asarray(samples, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise UsageError(
            "no statistics without samples" if values.size == 0 else "a sample is not a finite number",
            "a series must hold at least one measured time",
            "measure again",
        )
    return values
