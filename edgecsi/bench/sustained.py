"""Does it stay as fast? Half an hour second by second, and calls at the rate of reports instead of in a row."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgecsi.bench import statistics
from edgecsi.bench.behaviour import Periodic, Second, Sustained, Trend
from edgecsi.bench.measure import Call
from edgecsi.bench.result import Snapshot
from edgecsi.bench.statistics import Floats
from edgecsi.device.protocol import Paced
from edgecsi.device.state import THROTTLE_BITS
from edgecsi.errors import DeviceError, UsageError
from edgecsi.progress import Progress

STEADY = 0.02
"""Relative change of the median that is still called steady."""
FREQUENCY_FELL = 0.05
SMOOTHED = 5
"""Seconds whose median tells whether it had become slower: one disturbed second is no change."""


def _text_here(path: str) -> str:
    return Path(path).read_text(encoding="ascii")


@dataclass
class Meter:
    """A file of sysfs that counts energy in µJ (``energy_uj`` of RAPL, ``energy1_input`` of hwmon) or shows power in
    µW (``power_now``, ``power1_input``, ``power1_average``). Whoever measures says which; none is ever guessed.

    Args:
        path: of the file, on the machine that is measured.
        text: reads it; here by default.

    Raises:
        UsageError: the file is none of these, or has no number.
        DeviceError: the machine cannot be asked.
    """

    path: Path
    text: Callable[[str], str] = _text_here
    microjoules: float = 0.0
    power: float | None = None
    _last: tuple[float, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.path.name.startswith(("energy", "power")):
            raise UsageError(
                f"{self.path} is no meter",
                "energy is read from energy_uj or energyN_input, power from power_now, powerN_input or powerN_average",
                "name such a file of /sys/class/powercap, /sys/class/hwmon or /sys/class/power_supply",
            )
        self._last = (time.monotonic(), self._read())

    def read(self) -> None:
        """Adds what was used since the last time, and the mean power of that time in W."""
        now, value = time.monotonic(), self._read()
        then, before = self._last
        if self.path.name.startswith("energy"):
            used = value - before
            if used < 0:  # the counter began again: this second is not known
                used = (self.power or 0.0) * 1e6 * (now - then)
        else:
            used = value * (now - then)
        self.microjoules += used
        self.power = used / 1e6 / max(now - then, 1e-9)
        self._last = (now, value)

    def _read(self) -> float:
        try:
            return float(self.text(str(self.path)))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"the meter {self.path} cannot be read", str(error), "check the path; RAPL needs root"
            ) from None


def sustained(
    turn: Callable[[], Floats],
    seconds: float,
    *,
    state: Callable[[], Snapshot],
    rate: float | None = None,
    meter: Meter | None = None,
    progress: Progress | None = None,
) -> Sustained:
    """Watches calls for a long time. An interruption, or a device that is lost, ends it early: what was seen until
    then is kept.

    Args:
        turn: makes calls for about a second; their times in µs.
        seconds: how long to watch.
        state: of the machine, read after every turn.
        rate: calls a second of ``turn``, if it keeps to one.
        meter: of energy, if there is one.
        progress: told after every turn.
    """
    rows: list[Second] = []
    begin = time.monotonic()
    if meter is not None:
        meter.read()
    used_before = meter.microjoules if meter is not None else 0.0
    while (at := time.monotonic() - begin) < seconds or not rows:
        try:
            times, now = turn(), state()
        except (KeyboardInterrupt, DeviceError):
            if not rows:
                raise
            break
        if meter is not None:
            meter.read()
        rows.append(
            Second(
                at=at,
                calls=int(times.size),
                median=float(np.median(times)),
                p90=statistics.percentile(times, 90),
                # Of one second, p99 may rest on a few calls: the page says so by drawing it.
                p99=float(np.percentile(times, 99, method="inverted_cdf")),
                maximum=float(times.max()),
                temperature=now.temperature,
                frequency=max(now.frequency) if now.frequency else None,
                throttled=None
                if now.throttled is None
                else any(now.throttled >> bit & 1 for bit in THROTTLE_BITS),
                power=None if meter is None else meter.power,
            )
        )
        if progress is not None:
            progress(min(at, seconds), seconds, "watching whether it stays as fast")
    trend, change, since = judge_trend(rows)
    calls = sum(row.calls for row in rows)
    energy = (meter.microjoules - used_before) / calls if meter is not None else None
    named = None if meter is None else str(meter.path)
    return Sustained(rate, tuple(rows), trend, change, since, energy, named)


def judge_trend(rows: Sequence[Second]) -> tuple[Trend, float, float | None]:
    """Whether a run was steady, drifted or throttled; its relative change; and since when (s).

    The change is the last tenth's median over the first tenth's, or the slowest stretch's where the board throttled
    and recovered.
    """
    medians = np.array([row.median for row in rows])
    tenth = max(1, min(len(rows) // 2, max(3, len(rows) // 10)))
    first, last = float(np.median(medians[:tenth])), float(np.median(medians[-tenth:]))
    width = min(SMOOTHED, len(rows))
    smooth = np.array([np.median(medians[max(0, i - width + 1) : i + 1]) for i in range(len(rows))])
    change, slowest = last / first - 1, float(smooth.max()) / first - 1
    said = any(row.throttled for row in rows)
    fell = _fell([row.frequency for row in rows], tenth)
    if (said and slowest > STEADY) or (fell and change > STEADY):
        change = max(change, slowest) if said else change
        trend: Trend = "throttles"
    elif abs(change) > STEADY:
        trend = "drifts"
    else:
        return "steady", change, None
    beyond = (
        smooth > first * (1 + max(STEADY, change / 2)) if change > 0 else smooth < first * (1 + change / 2)
    )
    found = np.flatnonzero(beyond)
    return trend, change, rows[int(found[0])].at if found.size else None


def _fell(frequencies: Sequence[float | None], tenth: int) -> bool:
    known = [value for value in frequencies if value is not None]
    if len(known) != len(frequencies):
        return False
    return float(np.median(known[-tenth:])) < (1 - FREQUENCY_FELL) * float(np.median(known[:tenth]))


def paced(call: Call, rate: float, seconds: float) -> Paced:
    """Calls ``rate`` times a second for ``seconds``, asleep in between. A call that comes too late is made at once,
    and its delay counts: the network of a real system does not wait either."""
    count = max(1, round(rate * seconds))
    calls, responses, late = np.empty(count), np.empty(count), 0
    clock = time.perf_counter_ns
    period = 1e9 / rate
    start = clock() + period
    for index in range(count):
        due = start + index * period
        if (left := due - clock()) > 0:
            time.sleep(left / 1e9)
        elif index:
            late += 1
        begin = clock()
        call()
        end = clock()
        calls[index], responses[index] = (end - begin) / 1e3, (end - due) / 1e3
    return Paced(calls, responses, late)


def refuse_too_few(rate: float, seconds: float) -> None:
    """Refuses calls at a rate where there would be too few to say anything.

    Raises:
        UsageError: fewer than 20 calls.
    """
    if rate * seconds < 20:
        raise UsageError(
            f"{rate:g} calls a second for {seconds:g} s are too few",
            "percentiles of fewer than 20 calls say nothing",
            "measure longer with --seconds",
        )


def periodic(rate: float, found: Paced) -> Periodic:
    """The summary of calls at a rate."""
    return Periodic(
        rate, statistics.summarise(found.calls), statistics.summarise(found.responses), found.late
    )
