"""A distribution of latencies, small enough for a page and with no call left out of the count."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 64
STEPS = 120
"""Points of a distribution function."""


@dataclass(frozen=True)
class Distribution:
    """Times in µs.

    Attributes:
        count: calls, all of them.
        edges: of the bins, ascending; one more than ``counts``.
        counts: calls in each bin.
        beyond: calls above the last edge.
        largest: the slowest call.
        shares: (time, share of calls at most as slow), ascending.
        widths: how the bins were made, in words.
    """

    count: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    beyond: int
    largest: float
    shares: tuple[tuple[float, float], ...]
    widths: str


def of_samples(nanoseconds: NDArray[np.int64]) -> Distribution:
    """Every sample in bins of one width, from the fastest call to a little above the 99th percentile."""
    values = np.sort(nanoseconds) / 1e3
    high = float(values[-1])
    usual = float(values[int(0.99 * (values.size - 1))])
    limit = min(high, usual + 0.25 * (usual - float(values[0]))) or 1.0
    low = min(float(values[0]), limit)
    edges = np.linspace(low, limit if limit > low else low + 1e-3, BINS + 1)
    counts = np.histogram(values[values <= edges[-1]], edges)[0]
    levels = np.unique(np.concatenate([np.linspace(0, 0.98, STEPS // 2), np.linspace(0.98, 1, STEPS // 2)]))
    at = np.minimum((levels * values.size).astype(np.int64), values.size - 1)
    return Distribution(
        count=int(values.size),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        beyond=int(values.size - counts.sum()),
        largest=high,
        shares=tuple((float(values[i]), (int(i) + 1) / values.size) for i in at),
        widths=f"{BINS} bins of {(edges[1] - edges[0]):.2g} µs",
    )


def of_summary(kept: Mapping[str, Any]) -> Distribution:
    """What the files in docs/results keep of a series: ``count``, ``histogram`` (``edges_ns``, ``counts``).

    Raises:
        ValueError: it does not add up.
    """
    edges_ns, counts = _numbers(kept["histogram"]["edges_ns"]), _numbers(kept["histogram"]["counts"])
    count = kept["count"]
    if (
        len(edges_ns) != len(counts) + 1
        or not counts
        or sum(counts) != count
        or min(counts) < 0
        or edges_ns[0] < 0
        or any(b <= a for a, b in itertools.pairwise(edges_ns))
    ):
        raise ValueError("a histogram does not add up")
    edges = [edge / 1e3 for edge in edges_ns]
    sums = np.cumsum(counts)
    # Up to the bin that holds the 99th percentile, as for samples.
    last = min(int(np.searchsorted(sums, 0.99 * count)) + 2, len(counts))
    return Distribution(
        count=count,
        edges=tuple(edges[: last + 1]),
        counts=tuple(int(c) for c in counts[:last]),
        beyond=int(count - sums[last - 1]),
        largest=edges[-1],
        shares=tuple((edges[i + 1], float(sums[i]) / count) for i in range(len(counts)) if counts[i]),
        widths=f"{last} bins as kept in the file, each {100 * (edges[1] / max(edges[0], 1e-9) - 1):.2g} % wide",
    )


def _numbers(value: Any) -> Sequence[int]:
    if (
        not isinstance(value, list)
        or len(value) > 10_000
        or any(type(item) is not int or abs(item) > 2**53 for item in value)
    ):
        raise ValueError("a histogram is no list of whole numbers")
    return value
