"""The sections of a report that belong to one result."""

from __future__ import annotations

import math

import numpy as np

from edgecsi.bench import statistics
from edgecsi.bench.behaviour import REPORTING_MS, SLOT_MS
from edgecsi.bench.result import Engine, Result, Snapshot
from edgecsi.bench.statistics import Ratio
from edgecsi.errors import UsageError
from edgecsi.report import behaviour, svg
from edgecsi.report.behaviour import share
from edgecsi.report.content import Chart, Code, Part, Section, Table, Text
from edgecsi.report.read import Shown
from edgecsi.report.text import number, ratio_text

SAID = {
    "valid": "The measurement is valid: nothing that is known to disturb it did.",
    "suspect": "The measurement is suspect",
    "invalid": "The measurement is invalid",
}


def verdict(shown: Shown) -> tuple[str, ...]:
    """What, on what, how long, whether to believe it, and the deadline: sentences."""
    result = shown.result
    bundle = result.bundle
    what = f"{bundle.name}, entry {result.entry}" + (f", recipe {bundle.recipe}" if bundle.recipe else "")
    sentences = []
    if result.engines:
        warm = result.engines[0].warm
        tail = f", 99 % of the calls within {number(warm.p99)} µs" if warm.p99 is not None else ""
        sentences.append(
            f"{what} takes {number(warm.median)} µs on one thread of {result.machine.cpu}{tail} (median of "
            f"{warm.samples:,} calls, 95 % interval {number(warm.interval.low)} to {number(warm.interval.high)} µs)."
        )
        sentences += [
            f"That is {ratio_text(c.warm)} of the time of {c.to}, measured in turns with it."
            for c in result.comparisons
        ]
    elif result.instructions is not None:
        sentences.append(
            f"{what} for {bundle.target} takes {result.instructions:,} instructions an inference, counted under "
            "emulation: a proxy and no latency."
        )
    elif result.throughput is not None and result.throughput.rates:
        rate = result.throughput.rates[0]
        sentences.append(
            f"{what} does {rate.median:,.0f} samples a second on {_threads(rate.threads)} of {result.machine.cpu}, "
            f"each taking {rate.batch} at once."
        )
        sentences += [
            f"That is {ratio_text(g.ratio)} times as many as {g.to} at its best."
            for g in result.throughput.gains
        ]
    else:
        sentences.append(f"{what} for {bundle.target} on {result.device}: no time was measured.")
    reasons = "; ".join(result.validity.reasons)
    sentences.append(SAID[result.validity.state] + (f": {reasons}." if reasons else ""))
    if result.protocol.quick:
        sentences.append("It used the quick protocol, with few calls.")
    if (deadline := result.deadline) is not None:
        sentences.append(
            f"The deadline of {number(deadline.limit)} µs for {deadline.metric} is "
            + ("met" if deadline.met else "missed")
            + f": {number(deadline.found)} µs."
        )
    if result.sustained is not None:
        sentences.append(behaviour.trend(result.sustained))
    if result.entry == "encoder" and result.engines:
        time = _tail(result.engines[0])
        sentences.append(
            f"Of the {REPORTING_MS[30]} ms that a terminal has for a report at 30 kHz, its {time[0]} takes "
            f"{share(time[1] / 1e3, REPORTING_MS[30])}."
        )
    sentences.append(
        f"Its answer differs from PyTorch's by {result.answer.max_rel_diff:.1e} of the largest output."
    )
    if shown.weights == "random":
        sentences.append("Its weights are random: the time is that of a trained network, the answer is not.")
    return tuple(sentences)


def sections(shown: Shown, baseline: str | None) -> list[Section]:
    """All sections of one result, in the order in which they are read."""
    found = [
        Section(
            "Latency" if len(shown.result.engines) < 2 else "Against other engines",
            tuple(engines(shown, baseline)),
        ),
        Section("Distribution", tuple(distribution(shown))),
        Section("Where the time goes", tuple(layers(shown.result))),
        Section("Samples a second", tuple(throughput(shown.result))),
        Section("The deadline", tuple(behaviour.deadline(shown.result))),
        Section("Over time", tuple(behaviour.over_time(shown.result))),
        Section("At the rate of reports", tuple(behaviour.periodic(shown.result))),
        Section("Run after run", tuple(behaviour.runs(shown.result))),
        Section("The measurement against itself", tuple(behaviour.self_check(shown.result))),
        Section("Conditions", tuple(conditions(shown.result))),
        Section("Do it again", tuple(repeat(shown))),
    ]
    return [section for section in found if section.parts]


def engines(shown: Shown, baseline: str | None) -> list[Part]:
    """Every engine's percentiles, and its time against the baseline's."""
    result = shown.result
    if not result.engines:
        return []
    names = [engine.name for engine in result.engines]
    base = baseline if baseline in names else next((name for name in names[1:]), None)
    head = ("engine", "median µs", "95 % interval", "p90", "p95", "p99", "max", "cold L2")
    rows = []
    for engine in result.engines:
        warm = engine.warm
        row = (
            f"{engine.name} {engine.version}",
            number(warm.median),
            f"{number(warm.interval.low)}–{number(warm.interval.high)}",
            *(number(value) for value in (warm.p90, warm.p95, warm.p99, warm.maximum, engine.cold.median)),
        )
        rows.append(row if base is None else (*row, against(shown, engine.name, base)))
    parts: list[Part] = [
        Table(
            "Latency of one call, µs",
            head if base is None else (*head, f"of {base}'s time"),
            tuple(rows),
        ),
        Chart(
            "Median from zero, with p99 as whisker",
            svg.bars(
                f"Median latency of {', '.join(names)}",
                [
                    svg.Bar(
                        engine.name,
                        engine.warm.median,
                        f"{number(engine.warm.median)} µs",
                        engine.warm.median,
                        engine.warm.p99 or engine.warm.p95,
                        index,
                    )
                    for index, engine in enumerate(result.engines)
                ],
            ),
        ),
    ]
    if len(names) > 1:
        parts.append(
            Text(
                "Engines took turns of a few milliseconds; each ratio is the median over the rounds, so that what "
                "disturbed a round disturbed both. All have one thread."
            )
        )
    parts += [Text(f"{s.name} was not measured: {s.reason}. To have it: {s.fix}") for s in result.skipped]
    if result.c_call is not None:
        parts.append(
            Text(
                f"From Python. The C call alone takes {number(result.c_call.median)} µs "
                f"({number(result.c_call.interval.low)} to {number(result.c_call.interval.high)} µs)."
            )
        )
    return parts


def against(shown: Shown, name: str, base: str) -> str:
    """A ratio of times within one result, with its interval where the rounds are known."""
    result = shown.result
    if name == base:
        return "1"
    if name == result.engines[0].name:
        for comparison in result.comparisons:
            if comparison.to == base:
                return ratio_text(comparison.warm)
    if name in shown.samples and base in shown.samples:
        return ratio_text(_rounds_ratio(shown, name, base))
    return f"{result.engine(name).warm.median / result.engine(base).warm.median:.3f}"


def _rounds_ratio(shown: Shown, name: str, base: str) -> Ratio:
    one, other = (
        np.split(shown.samples[n].astype(np.float64), np.cumsum(shown.rounds[n])[:-1]) for n in (name, base)
    )
    try:
        return statistics.ratio(one, other)
    except UsageError:  # other numbers of rounds
        middle = result_median(shown, name) / result_median(shown, base)
        return Ratio(middle, statistics.Interval(middle, middle), 0)


def result_median(shown: Shown, name: str) -> float:
    """An engine's median, µs."""
    return shown.result.engine(name).warm.median


def distribution(shown: Shown) -> list[Part]:
    """Histogram of the first engine, distribution functions of all."""
    result = shown.result
    if not result.engines:
        return []
    first = result.engines[0]
    warm, found = first.warm, shown.distributions[first.name]
    marks = [("p50", warm.median), ("p90", warm.p90)] + ([("p99", warm.p99)] if warm.p99 is not None else [])
    beyond = (
        f" {found.beyond:,} calls above {number(found.edges[-1])} µs are not drawn; the slowest took "
        f"{number(found.largest)} µs."
        if found.beyond
        else ""
    )
    return [
        Chart(
            f"{first.name}: where the calls lie",
            svg.histogram(f"Histogram of {found.count:,} calls of {first.name}", found, marks),
            f"All {found.count:,} calls, in {found.widths}.{beyond}",
        ),
        Chart(
            "Share of calls at most as slow",
            svg.cumulative(
                "Distribution functions, from zero",
                [(engine.name, shown.distributions[engine.name]) for engine in result.engines],
                marks if len(result.engines) == 1 else [],
            ),
            "From zero. The slowest half percent may lie to the right of the drawing.",
        ),
        Text(
            "; ".join(
                f"{engine.name}: {engine.warm.outliers.count:,} of {engine.warm.samples:,} calls "
                f"({100 * engine.warm.outliers.share:.2f} %) lie more than three interquartile ranges above "
                f"the upper quartile, above "
                f"{number(engine.warm.outliers.limit)} µs. They are counted everywhere"
                for engine in result.engines
            )
            + "."
        ),
    ]


def layers(result: Result) -> list[Part]:
    """Time of every layer, its rates and its share of what the machine can do."""
    total = sum(layer.us for layer in result.layers)
    if not result.layers or total <= 0:
        return []
    known = any(layer.share is not None for layer in result.layers)
    head = ("layer", "kernel", "µs", "of all", "GB/s", "GMAC/s") + (("of the estimate",) if known else ())
    rows = [
        (
            layer.name,
            layer.kernel,
            f"{layer.us:.2f}",
            f"{layer.us / total:.0%}",
            number(layer.gbps),
            number(layer.gmacs),
        )
        + (("–" if layer.share is None else f"{layer.share:.0%} ({layer.bound})",) if known else ())
        for layer in result.layers
    ]
    limit = (
        " The estimate is what this machine takes to read the layer's weights or to multiply, whichever is more, in "
        "loops of our own; it is no bound."
        if known
        else " What this machine can do at best was not known: edgecsi bench --limits measures it."
    )
    return [
        Chart(
            "Time of each layer",
            svg.bars(
                "Time of each layer",
                [
                    svg.Bar(layer.name, layer.us, f"{layer.us:.2f} µs", colour=0)
                    for layer in result.layers[:40]
                ],
            ),
            "From passes of their own, with a clock reading between the layers." + limit,
        ),
        Table("Layers", head, tuple(rows), left=2),
    ]


def throughput(result: Result) -> list[Part]:
    """Batches on threads, and how many terminals a core serves in a slot."""
    if result.throughput is None:
        return []
    rates = result.throughput.rates
    parts: list[Part] = [
        Table(
            "Samples a second, all threads together",
            ("engine", "batch", "threads", "samples/s", "95 % interval"),
            tuple(
                (
                    f"{rate.name} {rate.version}",
                    str(rate.batch),
                    str(rate.threads),
                    f"{rate.median:,.0f}",
                    f"{rate.interval.low:,.0f}–{rate.interval.high:,.0f}",
                )
                for rate in rates
            ),
        ),
        Chart(
            "Samples a second",
            svg.bars(
                "Samples a second of every setting",
                [
                    svg.Bar(
                        f"{rate.name}, batch {rate.batch}, {_threads(rate.threads)}",
                        rate.median,
                        f"{rate.median:,.0f}",
                        colour=0 if index == 0 else 1,
                    )
                    for index, rate in enumerate(rates)
                ],
            ),
        ),
    ]
    if rates:
        a_core = rates[0].median / rates[0].threads
        parts.append(
            Table(
                "Terminals that one core serves in a slot, if each sends one report a slot",
                tuple(f"{spacing} kHz" for spacing in SLOT_MS),
                (tuple(f"{math.floor(a_core * ms / 1e3):,}" for ms in SLOT_MS.values()),),
                left=0,
            )
        )
    return parts


def conditions(result: Result) -> list[Part]:
    """Everything about the machine and the protocol."""
    before, after, machine, protocol = result.before, result.after, result.machine, result.protocol
    bundle = result.bundle
    rows = [
        ("bundle", f"{bundle.name}, digest {bundle.digest[:16]}…"),
        ("model", bundle.model + (f", recipe {bundle.recipe}" if bundle.recipe else "")),
        ("target, device", f"{bundle.target} on {result.device}"),
        ("size of the library", f"{bundle.library_bytes:,} bytes"),
    ]
    if accuracy := bundle.accuracy.named():
        rows += [*accuracy.items(), ("NMSE on", bundle.data or "the data of the build")]
    if result.cold_starts:
        load, first = (
            sorted(getattr(start, name) for start in result.cold_starts)[len(result.cold_starts) // 2]
            for name in ("load_ms", "first_call_ms")
        )
        memory = max(start.bundle_bytes for start in result.cold_starts) / 2**20
        rows.append(
            ("fresh process", f"load {load:.2f} ms, first call {first:.2f} ms, {memory:.1f} MB more memory")
        )
    rows += [
        ("CPU", f"{machine.cpu}, {machine.cores} cores{', virtual' if machine.hypervisor else ''}"),
        ("caches", ", ".join(f"{name} {size}" for name, size in machine.caches.items()) or "unknown"),
        ("system", machine.system),
        ("versions", ", ".join(f"{name} {value}" for name, value in machine.versions.items())),
        ("date", f"{before.date} to {after.date}"),
        ("governor", before.governor or "could not be read"),
        ("frequency", _before_after(before, after, "frequency", "MHz")),
        ("temperature", _before_after(before, after, "temperature", "°C")),
        ("throttled", "could not be read" if after.throttled is None else f"{after.throttled:#x}"),
        (
            "protocol",
            (
                f"{'quick, ' if protocol.quick else ''}at least {protocol.samples:,} calls and {protocol.seconds:g} s an "
                f"engine, turns of {1e3 * protocol.turn:g} ms; {protocol.cold_samples} calls with a cold L2"
            ),
        ),
    ]
    return [Table("Conditions", ("condition", "found"), tuple(rows), left=2)]


def repeat(shown: Shown) -> list[Part]:
    """Commands and the C program that give the same figure."""
    result = shown.result
    parts: list[Part] = []
    if shown.commands:
        parts.append(Code("Build the bundle and measure it", "\n".join(shown.commands)))
    if result.c_call is not None:
        parts.append(
            Code(
                f"The C call from a program of one's own: prints about {number(result.c_call.median)} µs for "
                f"{result.entry}",
                f"cc -O2 BUNDLE/example/main.c -LBUNDLE -l{result.bundle.name} -lm -o main\n"
                "LD_LIBRARY_PATH=BUNDLE ./main BUNDLE/golden.npz",
            )
        )
    if result.program:
        parts.append(Code("example/main.c, as it lies in the bundle", result.program, folded=True))
    return parts


def _before_after(before: Snapshot, after: Snapshot, name: str, unit: str) -> str:
    texts = []
    for snapshot in (before, after):
        value = getattr(snapshot, name)
        value = max(value) if isinstance(value, tuple) and value else value
        texts.append("?" if value is None or value == () else f"{value:.0f}")
    return "could not be read" if texts == ["?", "?"] else f"{texts[0]} before, {texts[1]} after, {unit}"


def _tail(engine: Engine) -> tuple[str, float]:
    return ("p99", engine.warm.p99) if engine.warm.p99 is not None else ("p95", engine.warm.p95)


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"
