"""The sections on deadlines, long runs, calls at a rate, and the measurement against itself."""

from __future__ import annotations

import numpy as np

from edgecsi.bench.behaviour import REPORTING_MS, SLOT_MS, Sustained
from edgecsi.bench.result import Result
from edgecsi.report import svg
from edgecsi.report.content import Chart, Part, Table, Text
from edgecsi.report.text import number, ratio_text


def deadline(result: Result) -> list[Part]:
    """The encoder against the time a terminal has, the decoder against the slot."""
    if not result.engines or result.entry.split("_")[0] not in ("encoder", "decoder", "full"):
        return []
    warm = result.engines[0].warm
    times = [("median", warm.median), *([("p99", warm.p99)] if warm.p99 is not None else [])]
    times.append(("median, cold L2", result.engines[0].cold.median))
    if result.entry.startswith("full"):
        return [
            Text(
                "Encoder and decoder run on different machines, so that neither deadline is held against both "
                "together. Measure --entry encoder and --entry decoder."
            )
        ]
    encoder = result.entry.startswith("encoder")
    limits = REPORTING_MS if encoder else SLOT_MS
    words = (
        "Z2′ of 3GPP TS 38.214, table 5.4-2: from the last reference signal to the report. Channel estimation and "
        "coding need their part of it."
        if encoder
        else "The decoder is the base station's: the length of a slot is a soft figure for it."
    )
    return [
        Table(
            "Share of the time there is" if encoder else "Share of a slot",
            ("time", *(f"{spacing} kHz: {ms:g} ms" for spacing, ms in limits.items())),
            tuple((name, *(share(us / 1e3, ms) for ms in limits.values())) for name, us in times),
        ),
        Text(words),
    ]


def trend(run: Sustained) -> str:
    """Whether it stayed as fast, in a sentence."""
    long = f"{run.seconds[-1].at + 1:.0f} s" if run.seconds else "no time"
    since = f", after {run.since:.0f} s" if run.since is not None else ""
    return {
        "steady": f"It is steady: over {long}, the last tenth is {run.change:+.1%} against the first.",
        "drifts": f"It drifts: the last tenth of {long} is {run.change:+.1%} against the first.",
        "throttles": f"It throttles: {run.change:+.1%}{since}.",
    }[run.trend]


def over_time(result: Result) -> list[Part]:
    """A long run second by second."""
    run = result.sustained
    if run is None or not run.seconds:
        return []
    seconds = run.seconds
    words = trend(run)
    rate = "" if run.rate is None else f" It was called {run.rate:g} times a second."
    energy = (
        ""
        if run.energy_uj is None
        else f" One call took {number(run.energy_uj)} µJ by the declared meter{f', {run.meter}' if run.meter else ''}."
    )
    parts: list[Part] = [
        Text(words + rate + energy),
        Chart(
            "Latency over time, µs",
            svg.over_time(
                "Median and p99 of every second",
                [
                    svg.Line("median", [(s.at, s.median) for s in seconds], 0),
                    svg.Line("p99", [(s.at, s.p99) for s in seconds], 1),
                ],
                "µs",
            ),
            f"{sum(s.calls for s in seconds):,} calls. The slowest took {number(max(s.maximum for s in seconds))} µs.",
        ),
    ]
    starts = [second.at for second in seconds]
    rates = [second.calls / (after - second.at) for second, after in zip(seconds, starts[1:], strict=False)]
    if rates:
        line = svg.Line("calls a second", list(zip(starts, rates, strict=False)), 3)
        parts.append(Chart("Calls a second", svg.over_time("Calls a second", [line], "1/s")))
    unread = []
    for title, unit, values in (
        ("Temperature", "°C", [(s.at, s.temperature) for s in seconds]),
        ("Frequency", "MHz", [(s.at, s.frequency) for s in seconds]),
        ("Power", "W", [(s.at, s.power) for s in seconds]),
    ):
        if any(value is not None for _, value in values):
            parts.append(Chart(title, svg.over_time(title, [svg.Line(title, values, 2)], unit)))
        else:
            unread.append("Power: no meter was declared." if unit == "W" else f"{title}: could not be read.")
    return [*parts, *([Text(" ".join(unread))] if unread else [])]


def periodic(result: Result) -> list[Part]:
    """Calls at a given rate beside calls in a row."""
    if (found := result.periodic) is None:
        return []
    rows = [("at the rate: the call", found.call), ("at the rate: from when it was due", found.response)]
    rows += [("one after the other", result.engines[0].warm)] if result.engines else []
    return [
        Table(
            f"{found.rate:g} calls a second, µs",
            ("calls", "median", "p90", "p99", "max"),
            tuple(
                (name, number(s.median), number(s.p90), number(s.p99), number(s.maximum)) for name, s in rows
            ),
        ),
        Text(
            "Between two reports the core may sleep and its caches serve others. The difference is what a real "
            f"system sees and a benchmark in a loop does not. {found.late:,} of {found.call.samples:,} calls were due "
            "before the one before had ended."
        ),
    ]


def runs(result: Result) -> list[Part]:
    """Several runs beside each other."""
    if (found := result.runs) is None:
        return []
    rows = [
        (name, *(number(min(m)), number(float(np.median(m))), number(max(m))), f"{found.spread(name):.1%}")
        for name, m in found.medians.items()
    ]
    count = len(next(iter(found.medians.values())))
    return [
        Table(
            f"Medians of {count} runs, µs", ("engine", "fastest", "middle", "slowest", "spread"), tuple(rows)
        ),
        Text(
            "Each run was a process of its own, with its memory elsewhere. The interval of one run holds that run's "
            "median only; the spread is what to expect of the next run. The rest of this page is the middle run."
        ),
    ]


def self_check(result: Result) -> list[Part]:
    """A/A, and the user's own program."""
    if (check := result.self_check) is None:
        return []
    parts: list[Part] = [
        Text(
            f"The same library, loaded twice and measured as two engines, takes {ratio_text(check.ratio)} of its own "
            "time: "
            + ("no difference where there is none." if check.agrees else "a difference where there is none.")
        )
    ]
    if check.program is not None:
        parts.append(
            Text(
                f"The bundle's own C program prints {number(check.program)} µs, edgecsi bench finds "
                f"{number(check.c_call)} µs for the same call: {check.program / check.c_call - 1:+.1%}."
            )
        )
    return parts


def share(ms: float, limit: float) -> str:
    """A time as a part of another: two digits where it is small."""
    percent = 100 * ms / limit
    return f"{percent:.2g} %" if percent < 10 else f"{percent:.0f} %"
