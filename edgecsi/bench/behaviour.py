"""What a result may hold beside the latencies of calls in a row: a deadline, calls at a given rate, half an hour,
and what the measurement finds between a library and itself. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgecsi.bench.statistics import Ratio, Summary

Trend = Literal["steady", "drifts", "throttles"]

REPORTING_MS = {15: 2.640, 30: 2.462, 60: 2.497, 120: 1.249}
"""Subcarrier spacing in kHz → Z2′ in ms: how long a terminal may take from the last CSI reference signal to its
report (3GPP TS 38.214, table 5.4-2). Channel estimation and coding need their part of it too."""
SLOT_MS = {15: 1.0, 30: 0.5, 60: 0.25, 120: 0.125}
"""Subcarrier spacing in kHz → length of a slot in ms (TS 38.211): a soft figure for the base station's decoder."""


@dataclass(frozen=True)
class Deadline:
    """A limit that was asked for (µs), what it is held against (``median``, ``p90``, ``p95``, ``p99``, ``p99.9``,
    ``max``), and what was found (µs)."""

    limit: float
    metric: str
    found: float

    @property
    def met(self) -> bool:
        """Whether it was fast enough."""
        return self.found <= self.limit


@dataclass(frozen=True)
class Periodic:
    """Calls at a given rate, as CSI reports come, instead of one after the other. In between, the core may sleep
    and the caches are other people's.

    Attributes:
        rate: calls a second.
        call: time of the call itself, µs.
        response: from when the call was due to its answer, µs: with the time it took to wake up.
        late: calls that were due before the one before had ended.
    """

    rate: float
    call: Summary
    response: Summary
    late: int


@dataclass(frozen=True)
class Second:
    """One second of a long run: when it began (s since the start), calls, and their times in µs. Temperature in °C,
    frequency in MHz, power in W; None where it cannot be read."""

    at: float
    calls: int
    median: float
    p90: float
    p99: float
    maximum: float
    temperature: float | None
    frequency: float | None
    throttled: bool | None
    power: float | None


@dataclass(frozen=True)
class Sustained:
    """Whether it stays as fast.

    Attributes:
        rate: calls a second; None for one after the other.
        seconds: second by second.
        trend: ``steady``; ``drifts``: the last tenth of the run has another median than the first; ``throttles``:
            it became slower and the machine said why, or its frequency fell.
        change: median of the last tenth over the first tenth, less 1.
        since: after how many seconds it had become slower, None if it did not.
        energy_uj: a call's share of the energy that a declared meter counted, in µJ.
        meter: the file that was declared.
    """

    rate: float | None
    seconds: tuple[Second, ...]
    trend: Trend
    change: float
    since: float | None
    energy_uj: float | None
    meter: str | None = None


@dataclass(frozen=True)
class Runs:
    """Several whole measurements of one bundle, each in a process of its own. By engine, the median of every run in
    µs: a run's interval holds that run's median, and says nothing of the next run's."""

    medians: dict[str, tuple[float, ...]]

    def spread(self, engine: str) -> float:
        """How far the slowest run of an engine lies above its fastest, as a share of the fastest."""
        return max(self.medians[engine]) / min(self.medians[engine]) - 1


@dataclass(frozen=True)
class SelfCheck:
    """What the measurement finds where there is nothing to find.

    Attributes:
        ratio: the library over itself, loaded twice and measured as two engines. Its interval should hold 1.
        c_call: median of the C call as bench times it, µs.
        program: median that the bundle's own example/main.c prints, µs; None if it could not be compiled here.
    """

    ratio: Ratio
    c_call: float
    program: float | None

    @property
    def agrees(self) -> bool:
        """Whether no difference was found between the library and itself."""
        return self.ratio.interval.low <= 1 <= self.ratio.interval.high
