"""The sections of a report that hold several results beside each other."""

from __future__ import annotations

from collections.abc import Sequence

from edgecsi.bench.result import Result
from edgecsi.errors import UsageError
from edgecsi.report import svg
from edgecsi.report.content import Chart, Part, Section, Table, Text
from edgecsi.report.read import Shown
from edgecsi.report.text import number


def sections(found: Sequence[Shown], baseline: str | None) -> list[Section]:
    """What can be said of all results together.

    Args:
        found: two results or more.
        baseline: name of the one that the others are held against, or of an engine.

    Raises:
        UsageError: no result or engine is called ``baseline``.
    """
    names = {shown.name for shown in found} | {shown.label for shown in found}
    engines = {engine.name for shown in found for engine in shown.result.engines}
    if baseline is not None and baseline not in names | engines:
        raise UsageError(
            f"nothing here is called {baseline}",
            f"there are the results {', '.join(sorted(names)[:10])} and the engines {', '.join(sorted(engines))}",
            "give one of these as --baseline",
        )
    base = next((shown for shown in found if baseline in (shown.name, shown.label)), None)
    made = [
        Section("All results", (_overview(found, base), *_overview_words(found, base))),
        Section("Size and NMSE beside latency", tuple(_pareto(found))),
        Section("Devices side by side", tuple(_devices(found))),
    ]
    return [section for section in made if section.parts]


def _overview(found: Sequence[Shown], base: Shown | None) -> Table:
    head = ["result", "device", "median µs", "p99", "library kB", "NMSE dB", "validity"]
    rows = []
    for shown in found:
        result = shown.result
        warm = result.engines[0].warm if result.engines else None
        nmse = result.bundle.nmse_db
        row = [
            shown.label,
            _where(result),
            _main_figure(result),
            "–" if warm is None else number(warm.p99),
            f"{result.bundle.library_bytes / 1e3:,.0f}",
            "–" if nmse is None else f"{nmse:.2f}",
            result.validity.state,
        ]
        if base is not None:
            row.insert(3, _of(shown, base))
        rows.append(tuple(row))
    if base is not None:
        head.insert(3, f"of {base.label}")
    return Table("Every result", tuple(head), tuple(rows), left=2)


def _overview_words(found: Sequence[Shown], base: Shown | None) -> tuple[Part, ...]:
    on: dict[str, list[str]] = {}
    for shown in found:
        if shown.result.bundle.nmse_db is not None:
            on.setdefault(shown.result.bundle.data or "the data of the build", []).append(shown.label)
    words = []
    if len(on) > 1:
        data = "; ".join(f"on {data}: {', '.join(labels)}" for data, labels in on.items())
        words.append(
            f"NMSE is what each build's check found, {data}. Only those on the same data can be compared."
        )
    turns = (
        "These are separate runs: what disturbed one did not disturb the other. Ratios within one result, measured in "
        "turns, say more; edgecsi compare says whether two runs differ."
    )
    return tuple(map(Text, words if base is None else [turns, *words]))


def _of(shown: Shown, base: Shown) -> str:
    one, other = shown.result, base.result
    if shown is base:
        return "1"
    if (
        not one.engines
        or not other.engines
        or one.machine.cpu != other.machine.cpu
        or one.entry != other.entry
    ):
        return "not comparable"
    return f"{one.engines[0].warm.median / other.engines[0].warm.median:.3f}"


def _main_figure(result: Result) -> str:
    if result.engines:
        return number(result.engines[0].warm.median)
    if result.instructions is not None:
        return f"({result.instructions:,} instructions)"
    if result.throughput is not None and result.throughput.rates:
        return f"({result.throughput.rates[0].median:,.0f} samples/s)"
    return "–"


def _where(result: Result) -> str:
    return f"{result.bundle.target}, emulated" if result.instructions is not None else result.machine.cpu


def _pareto(found: Sequence[Shown]) -> list[Part]:
    """Latency against NMSE, of results that can be held against each other."""
    groups: dict[tuple[str, str, str], list[Shown]] = {}
    for shown in found:
        result = shown.result
        if result.engines and result.bundle.nmse_db is not None and result.validity.state != "invalid":
            key = (result.machine.cpu, result.entry, result.bundle.data)
            groups.setdefault(key, []).append(shown)
    parts: list[Part] = []
    for (cpu, entry, data), group in groups.items():
        if len(group) > 1:
            parts += _plane(f"{entry} on {cpu}" + (f", NMSE on {data}" if data else ""), group)
    return parts


def _plane(where: str, group: Sequence[Shown]) -> list[Part]:
    figures = [
        (s.result.engines[0].warm.median, s.result.bundle.nmse_db or 0.0, s.result.bundle.library_bytes)
        for s in group
    ]
    outdone = [
        next(
            (
                group[j].label
                for j, other in enumerate(figures)
                if other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            ),
            None,
        )
        for mine in figures
    ]
    points = [
        svg.Point(
            shown.label,
            us,
            nmse,
            f"{number(us)} µs, {nmse:.2f} dB, {size / 1e3:,.0f} kB",
            faded=by is not None,
        )
        for shown, (us, nmse, size), by in zip(group, figures, outdone, strict=True)
    ]
    return [
        Chart(
            f"Latency and NMSE: {where}",
            svg.scatter("Latency and NMSE of every result", points, "median µs", "NMSE dB, lower is better"),
            "Numbers are those of the table. Faded ones are outdone: another one is at least as fast, as small and as "
            "good. The NMSE axis does not start at zero.",
        ),
        Table(
            "Trade-offs",
            ("no.", "result", "median µs", "NMSE dB", "library kB", "outdone by"),
            tuple(
                (str(i), shown.label, number(us), f"{nmse:.2f}", f"{size / 1e3:,.0f}", by or "nothing")
                for i, (shown, (us, nmse, size), by) in enumerate(
                    zip(group, figures, outdone, strict=True), 1
                )
            ),
            left=2,
        ),
    ]


def _devices(found: Sequence[Shown]) -> list[Part]:
    """Latencies of real CPUs in one drawing, counts of emulated ones in another: they are never held together."""
    times = [shown for shown in found if shown.result.engines]
    counts = [shown for shown in found if shown.result.instructions is not None]
    machines = {_where(shown.result) for shown in [*times, *counts]}
    parts: list[Part] = []
    if len(machines) < 2:
        return parts
    if times:
        order = sorted({shown.result.machine.cpu for shown in times})
        bars = [
            svg.Bar(
                shown.label,
                shown.result.engines[0].warm.median,
                f"{number(shown.result.engines[0].warm.median)} µs",
                shown.result.engines[0].warm.median,
                shown.result.engines[0].warm.p99,
                order.index(shown.result.machine.cpu),
            )
            for shown in times[:40]
        ]
        parts.append(
            Chart(
                "Latency, measured: median, p99 as whisker",
                svg.bars("Latency by device", bars, [(name, i) for i, name in enumerate(order)]),
            )
        )
    if counts:
        targets = sorted({shown.result.bundle.target for shown in counts})
        bars = [
            svg.Bar(
                shown.label,
                shown.result.instructions or 0,
                f"{(shown.result.instructions or 0) / 1e6:.2f} M",
                colour=targets.index(shown.result.bundle.target) + 2,
            )
            for shown in counts[:40]
        ]
        parts.append(
            Chart(
                "Instructions an inference, emulated",
                svg.bars("Instructions by device", bars, [(name, i + 2) for i, name in enumerate(targets)]),
                "Counted under QEMU with the board's CPU: a proxy, not a latency, and never held against times.",
            )
        )
    return parts
