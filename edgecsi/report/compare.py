"""Two results held against each other: better, worse, same, or nobody can tell.

A difference counts when its whole interval lies outside of what two runs of one library differ by (:data:`MARGIN`);
two runs are the same when it lies inside. Anything else is not known, and is said so. Nothing else fails a gate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgecsi.bench.result import Engine, LayerTime, Result
from edgecsi.bench.statistics import NEEDED, Interval, median_interval, percentile, quantile_interval
from edgecsi.errors import DataError, UsageError
from edgecsi.report.read import Shown
from edgecsi.report.text import ANY, columns, number

Verdict = Literal["better", "worse", "same", "cannot tell"]

METRICS = {"median": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
MARGIN = {"median": 0.02, "p90": 0.03, "p95": 0.03, "p99": 0.05}
"""Relative difference that two runs of one library show on a quiet machine: where its memory came to lie, what the
machine did meanwhile. Intervals within a run know nothing of it."""
LAYER_MARGIN, LAYER_US = 0.10, 0.15
"""The same for a layer, whichever is more: a small one depends on where it came to lie in memory more than a whole
network does, and the clock is read around each (measured: 12 layers of six runs on a busy machine)."""
NMSE_DB = 0.01


@dataclass(frozen=True)
class Change:
    """One thing that both results have.

    Attributes:
        what: in words.
        before, after: as text with its unit.
        ratio: after over before, for NMSE the difference in dB.
        interval: of ``ratio``, 95 %; None for exact figures and single ones.
        verdict: smaller times, bytes and dB are better, larger rates too.
        basis: what the verdict rests on.
        gates: whether it may fail ``--fail-above``.
    """

    what: str
    before: str
    after: str
    ratio: float
    interval: Interval | None
    verdict: Verdict
    basis: str
    gates: bool = False


@dataclass(frozen=True)
class BeforeAfter:
    """Two results held against each other. ``notes`` is what a reader must know before believing it."""

    before: str
    after: str
    metric: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    def worse_than(self, limit: float) -> list[Change]:
        """Changes for the worse of more than ``limit`` (0.05 for 5 %) that are certain."""
        return [c for c in self.changes if c.gates and c.verdict == "worse" and _loss(c) > limit]


def compare(before: Shown, after: Shown, metric: str = "median") -> BeforeAfter:
    """Holds ``after`` against ``before``.

    Args:
        before, after: one entry each, measured in the same way on the same machine.
        metric: ``median``, ``p90``, ``p95`` or ``p99`` of a call.

    Raises:
        DataError: they cannot be compared.
        UsageError: an unknown metric.
    """
    if metric not in METRICS:
        raise UsageError(
            f"{metric} is not compared", f"there are {', '.join(METRICS)}", "choose one of these"
        )
    _refuse(before, after)
    one, other = before.result, after.result
    notes = _notes(one, other)
    changes: list[Change] = []
    if one.engines and other.engines:
        changes += _latency(before, after, metric, notes)
    if one.throughput is not None and other.throughput is not None:
        changes += _rates(one, other)
    if one.instructions is not None and other.instructions is not None:
        ratio = other.instructions / one.instructions
        verdict: Verdict = "same" if abs(ratio - 1) < 1e-3 else "worse" if ratio > 1 else "better"
        counts = [f"{count:,}" for count in (one.instructions, other.instructions)]
        changes.append(
            Change(
                "instructions",
                counts[0],
                counts[1],
                ratio,
                None,
                verdict,
                "exact counts, emulated",
                gates=True,
            )
        )
    changes += _exact(one, other) + _layers(one, other, notes)
    return BeforeAfter(before.label, after.label, metric, tuple(changes), tuple(notes))


def pairs(before: Sequence[Shown], after: Sequence[Shown]) -> tuple[list[tuple[Shown, Shown]], list[str]]:
    """The latest result of every entry of every bundle, before and after; and notes on those that only one side has.

    Raises:
        DataError: they have no entry in common.
    """
    latest = [{_work(shown.result): shown for shown in sorted(side, key=_date)} for side in (before, after)]
    old, new = latest
    common = [key for key in old if key in new]
    if not common:
        raise DataError(
            "the two folders have nothing to compare",
            f"before: {_names(old.values())}; after: {_names(new.values())}",
            "measure the same bundles and entries into both",
        )
    notes = [
        f"only {when}: {_names(shown for key, shown in side.items() if key not in common)}"
        for when, side in (("before", old), ("after", new))
        if len(side) > len(common)
    ]
    return [(old[key], new[key]) for key in common], notes


def judge(ratio: float, interval: Interval, margin: float, rate: bool = False) -> Verdict:
    """The verdict on a ratio of times (or of rates) whose interval is known."""
    low, high = interval.low, interval.high
    if not (math.isfinite(ratio) and math.isfinite(low) and math.isfinite(high)):
        return "cannot tell"
    if 1 / (1 + margin) <= low and high <= 1 + margin:
        return "same"
    if low > 1 + margin:
        return "better" if rate else "worse"
    if high < 1 / (1 + margin):
        return "worse" if rate else "better"
    return "cannot tell"


def quotient(after: float, above: Interval, before: float, below: Interval) -> tuple[float, Interval]:
    """A ratio of two independent figures and its interval, from theirs (Zou and Donner, "Construction of confidence
    limits about effect measures", Statistics in Medicine 27, 2008, on logarithms)."""
    if min(after, before, above.low, below.low) <= 0:
        return math.nan, Interval(math.nan, math.nan)
    logs = [math.log(value) for value in (after, above.low, above.high, before, below.low, below.high)]
    middle = logs[0] - logs[3]
    low = middle - math.hypot(logs[0] - logs[1], logs[5] - logs[3])
    high = middle + math.hypot(logs[2] - logs[0], logs[3] - logs[4])
    return math.exp(middle), Interval(math.exp(low), math.exp(high))


def text(found: BeforeAfter, room: int = ANY) -> str:
    """For a terminal that has room for so many columns."""
    rows = [["", "before", "after", "ratio", "95 % interval", "verdict"]]
    rows += [
        [
            change.what,
            change.before,
            change.after,
            f"{change.ratio:+.2f} dB" if change.what == "NMSE" else f"{change.ratio:.3f}",
            "" if change.interval is None else f"{change.interval.low:.3f}-{change.interval.high:.3f}",
            change.verdict,
        ]
        for change in found.changes
    ]
    layers = [change for change in found.changes if change.what.startswith("layer ")][:1]
    bases = [f"{change.what}: {change.basis}" for change in found.changes if change.gates]
    bases += [f"layers: {change.basis}" for change in layers]
    lines = [f"{found.before} -> {found.after}", *(f"NOTE: {note}" for note in found.notes)]
    return "\n".join(lines) + "\n\n" + columns(rows, room=room) + "\n\n" + "\n".join(bases)


def _refuse(before: Shown, after: Shown) -> None:
    one, other = before.result, after.result
    reason = None
    if (one.instructions is None) != (other.instructions is None):
        reason = "one has instruction counts from emulation, the other has times: a count is no latency"
    elif one.instructions is not None and one.bundle.target != other.bundle.target:
        reason = f"one is for {one.bundle.target}, the other for {other.bundle.target}"
    elif one.instructions is None and _machine(one) != _machine(other):
        reason = f"one was measured on {_machine(one)}, the other on {_machine(other)}"
    elif one.entry != other.entry:
        reason = f"one is of entry {one.entry}, the other of {other.entry}"
    elif (one.throughput is None) != (other.throughput is None):
        reason = "one has samples a second of batches, the other latencies of single calls"
    elif one.protocol.quick != other.protocol.quick:
        reason = "one was measured with the quick protocol, the other with the full one"
    else:
        for shown in (before, after):
            if shown.result.validity.state == "invalid" and shown.result.instructions is None:
                reason = f"{shown.label} is invalid: {'; '.join(shown.result.validity.reasons)}"
    if reason is not None:
        raise DataError(
            f"{before.label} and {after.label} cannot be compared",
            reason,
            "measure both in the same way on one machine, or look at them beside each other with edgecsi report",
        )


def _work(result: Result) -> tuple[object, ...]:
    bundle = result.bundle
    return bundle.name, bundle.target, result.entry, result.device, result.throughput is not None


def _date(shown: Shown) -> str:
    return shown.result.after.date


def _names(found: Iterable[Shown]) -> str:
    return ", ".join(shown.label for shown in found)


def _machine(result: Result) -> str:
    return f"{result.machine.cpu} ({result.machine.cores} cores, {result.device})"


def _notes(one: Result, other: Result) -> list[str]:
    notes = [
        f"{name} is suspect: {'; '.join(result.validity.reasons)}"
        for name, result in (("before", one), ("after", other))
        if result.validity.state == "suspect"
    ]
    pairs = {
        "model": (one.bundle.model, other.bundle.model),
        "recipe": (one.bundle.recipe, other.bundle.recipe),
        "target": (one.bundle.target, other.bundle.target),
        "system": (one.machine.system, other.machine.system),
        "seconds an engine": (one.protocol.seconds, other.protocol.seconds),
        "governor": (one.after.governor, other.after.governor),
    }
    notes += [f"another {name}: {a or 'none'} -> {b or 'none'}" for name, (a, b) in pairs.items() if a != b]
    return notes


def _latency(before: Shown, after: Shown, metric: str, notes: list[str]) -> list[Change]:
    one, other = before.result.engines[0], after.result.engines[0]
    changes = [_times(f"one call, {metric}", before, one, after, other, metric)]
    for old in before.result.engines[1:]:
        new = next(
            (e for e in after.result.engines[1:] if (e.name, e.version) == (old.name, old.version)), None
        )
        if new is None:
            continue
        changes.append(_times(f"{old.name}, {metric}, as a control", before, old, after, new, metric))
        if metric == "median" and (relative := _relative(before.result, after.result, old.name)) is not None:
            # Both runs measured both engines in turns: what the machine did between the runs cancels.
            if {changes[0].verdict, relative.verdict} in (
                {"better", "worse"},
                {"same", "worse"},
                {"same", "better"},
            ):
                notes.append(
                    f"{old.name}, which is the same in both runs, moved as well ({changes[-1].ratio - 1:+.1%}): the "
                    "machine changed; believe the comparison against it"
                )
            changes.insert(0, relative)
    if any(change.what.startswith("one call, against") for change in changes):
        changes = [_without_gate(c) if c.what == f"one call, {metric}" else c for c in changes]
    return changes


def _times(what: str, before: Shown, one: Engine, after: Shown, other: Engine, metric: str) -> Change:
    figures = [_figure(shown, engine, metric) for shown, engine in ((before, one), (after, other))]
    (old, old_interval), (new, new_interval) = figures
    own = one is before.result.engines[0]
    if old is None or new is None:
        return Change(
            what,
            number(old),
            number(new),
            math.nan,
            None,
            "cannot tell",
            f"too few calls for {metric}",
            gates=own,
        )
    if old_interval is None or new_interval is None:
        basis = f"the file keeps no samples, so the interval of {metric} is not known"
        return Change(what, number(old), number(new), new / old, None, "cannot tell", basis, gates=own)
    ratio, interval = quotient(new, new_interval, old, old_interval)
    verdict = judge(ratio, interval, MARGIN[metric])
    basis = f"two runs; {MARGIN[metric]:.0%} is what runs of one library may differ by"
    return Change(what, f"{number(old)} µs", f"{number(new)} µs", ratio, interval, verdict, basis, gates=own)


def _figure(shown: Shown, engine: Engine, metric: str) -> tuple[float | None, Interval | None]:
    level = METRICS[metric]
    samples = shown.samples.get(engine.name)
    if metric == "median":
        # What the file claims may come from an older edgecsi, whose intervals were too narrow.
        interval = median_interval(samples / 1e3) if samples is not None else engine.warm.interval
        return engine.warm.median, interval
    if samples is None:
        known: float | None = getattr(engine.warm, metric)
        return known, None
    if samples.size < max((n for q, n in NEEDED.items() if level >= q), default=1):
        return None, None
    return percentile(samples / 1e3, level), quantile_interval(samples / 1e3, level)


def _relative(one: Result, other: Result, peer: str) -> Change | None:
    ratios = [next((c.warm for c in result.comparisons if c.to == peer), None) for result in (one, other)]
    old, new = ratios
    if old is None or new is None:
        return None
    ratio, interval = quotient(new.ratio, new.interval, old.ratio, old.interval)
    basis = f"times relative to {peer}, measured in turns in both runs, so that the machine cancels"
    return Change(
        f"one call, against {peer}",
        f"{old.ratio:.3f}",
        f"{new.ratio:.3f}",
        ratio,
        interval,
        judge(ratio, interval, MARGIN["median"]),
        basis,
        gates=True,
    )


def _without_gate(change: Change) -> Change:
    return replace(change, gates=False)


def _rates(one: Result, other: Result) -> list[Change]:
    assert one.throughput is not None
    assert other.throughput is not None
    changes = []
    for old in one.throughput.rates[:1]:
        same = [
            r
            for r in other.throughput.rates
            if (r.name, r.batch, r.threads) == (old.name, old.batch, old.threads)
        ]
        for new in same:
            intervals = [
                median_interval(np.asarray(rate.rounds)) if rate.rounds else rate.interval
                for rate in (new, old)
            ]
            ratio, interval = quotient(new.median, intervals[0], old.median, intervals[1])
            verdict = judge(ratio, interval, MARGIN["median"], rate=True)
            what = f"samples/s, batch {old.batch} on {old.threads}"
            rates = [f"{rate.median:,.0f}" for rate in (old, new)]
            changes.append(Change(what, rates[0], rates[1], ratio, interval, verdict, "two runs", gates=True))
    return changes


def _exact(one: Result, other: Result) -> list[Change]:
    changes = []
    for what, old, new in (
        ("library bytes", one.bundle.library_bytes, other.bundle.library_bytes),
        ("weight bytes", one.bundle.weight_bytes, other.bundle.weight_bytes),
    ):
        if old and new:
            verdict: Verdict = "same" if old == new else "worse" if new > old else "better"
            changes.append(Change(what, f"{old:,}", f"{new:,}", new / old, None, verdict, "exact"))
    old_db, new_db = one.bundle.nmse_db, other.bundle.nmse_db
    if old_db is not None and new_db is not None:
        difference = new_db - old_db
        verdict = "same" if abs(difference) <= NMSE_DB else "worse" if difference > 0 else "better"
        if one.bundle.data != other.bundle.data:
            verdict = "cannot tell"
        changes.append(
            Change(
                "NMSE",
                f"{old_db:.2f} dB",
                f"{new_db:.2f} dB",
                difference,
                None,
                verdict,
                "the builds' own checks",
            )
        )
    return changes


def _layers(one: Result, other: Result, notes: list[str]) -> list[Change]:
    before, after = _by_name(one.layers), _by_name(other.layers)
    for when, lonely in (("before", before.keys() - after.keys()), ("after", after.keys() - before.keys())):
        if lonely and before and after:
            notes.append(f"layers only {when}: {', '.join(sorted({name for name, _ in lonely}))}")
    return [_layer(old, after[key]) for key, old in before.items() if key in after and old.us > 0]


def _layer(old: LayerTime, new: LayerTime) -> Change:
    kernel = old.kernel if old.kernel == new.kernel else f"{old.kernel} -> {new.kernel}"
    what, times = f"layer {old.name} ({kernel})", (f"{old.us:.2f} µs", f"{new.us:.2f} µs")
    if old.interval is None or new.interval is None:
        basis = "a result of an older schema keeps no interval of its layers"
        return Change(what, *times, new.us / old.us, None, "cannot tell", basis)
    ratio, interval = quotient(new.us, new.interval, old.us, old.interval)
    verdict = judge(ratio, interval, max(LAYER_MARGIN, LAYER_US / old.us))
    basis = (
        f"passes of their own; {LAYER_MARGIN:.0%} or {LAYER_US} µs is what runs of one library may differ by"
    )
    return Change(what, *times, ratio, interval, verdict, basis)


def _by_name(layers: Sequence[LayerTime]) -> dict[tuple[str, int], LayerTime]:
    """Layers by name; a layer of the network may be several calls, told apart by their order."""
    found: dict[tuple[str, int], LayerTime] = {}
    for layer in layers:
        found[layer.name, sum(name == layer.name for name, _ in found)] = layer
    return found


def _loss(change: Change) -> float:
    """How much worse, for times and for rates."""
    return (1 / change.ratio if change.what.startswith("samples/s") else change.ratio) - 1


def certain(changes: Sequence[Change]) -> bool:
    """Whether every change that may fail a gate has a verdict."""
    return all(change.verdict != "cannot tell" for change in changes if change.gates)
