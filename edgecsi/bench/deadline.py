"""A deadline, as it is written on the command line and as it is held."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgecsi.bench.behaviour import Deadline
from edgecsi.bench.result import Result
from edgecsi.bench.statistics import NEEDED
from edgecsi.errors import UsageError

_MICROSECONDS = {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}
METRICS = ("median", "p90", "p95", "p99", "p99.9", "max")


@dataclass(frozen=True)
class Limit:
    """At most so many µs, for this metric of the calls."""

    us: float
    metric: str


def parse_limit(text: str) -> Limit:
    """``0.5ms``, ``0.5ms:p99``, ``80us:median``; p99 where nothing is said.

    Raises:
        UsageError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|µs|ms|s)(?::([a-z0-9.]+))?", text.strip())
    if not found or (found[3] or "p99") not in METRICS or float(found[1]) <= 0:
        raise UsageError(
            f"{text!r} is no deadline",
            f"it is a time and, after a colon, one of {', '.join(METRICS)}",
            "give one such as 0.5ms or 0.5ms:p99",
        )
    return Limit(float(found[1]) * _MICROSECONDS[found[2]], found[3] or "p99")


def held(result: Result, limit: Limit) -> Deadline:
    """The deadline against the first engine's warm calls; against responses where calls came at a rate.

    Raises:
        UsageError: the result has no latencies, or too few calls for the metric.
    """
    if not result.engines:
        raise UsageError(
            f"{result.bundle.name} has no latencies to hold a deadline against",
            "it ran emulated, or batches were measured",
            "measure single calls on a real CPU",
        )
    warm = result.periodic.response if result.periodic is not None else result.engines[0].warm
    values = {"p99.9": warm.p999, "max": warm.maximum}
    value = values[limit.metric] if limit.metric in values else getattr(warm, limit.metric)
    if value is None:
        needed = NEEDED[99.9 if limit.metric == "p99.9" else 99.0]
        raise UsageError(
            f"{warm.samples:,} calls are too few for {limit.metric}",
            f"it takes at least {needed:,}",
            "measure longer, or hold the deadline against a lower percentile, such as 0.5ms:p95",
        )
    return Deadline(limit.us, limit.metric, float(value))
