"""Many results of one thing over time, and where its latency stepped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgecsi.report import svg
from edgecsi.report.compare import MARGIN
from edgecsi.report.content import Chart, Part, Section, Table, Text
from edgecsi.report.read import Shown
from edgecsi.report.text import number

FEWEST = 3
"""Results that make a history."""


@dataclass(frozen=True)
class Shift:
    """From result ``index`` on, medians lie by ``change`` above or below those before (0.05 is 5 %)."""

    index: int
    change: float


@dataclass(frozen=True)
class History:
    """Results of one bundle's entry on one machine, by date, and the steps among them."""

    what: str
    results: tuple[Shown, ...]
    steps: tuple[Shift, ...]

    @property
    def last_step(self) -> Shift | None:
        """The latest step."""
        return self.steps[-1] if self.steps else None


def histories(found: Sequence[Shown]) -> list[History]:
    """Results that can be held against each other, by date, where there are at least three; invalid ones are left
    out."""
    groups: dict[tuple[object, ...], list[Shown]] = {}
    for shown in found:
        result = shown.result
        if result.engines and result.validity.state != "invalid":
            bundle = result.bundle
            key = (bundle.name, bundle.recipe, bundle.target, result.entry, result.device, result.machine.cpu)
            groups.setdefault((*key, result.protocol.quick), []).append(shown)
    made = []
    for group in groups.values():
        ordered = sorted(group, key=lambda shown: shown.result.after.date)
        dates = {shown.result.after.date for shown in ordered}
        if len(ordered) >= FEWEST and len(dates) == len(ordered):
            first = ordered[0].result
            medians = np.array([shown.result.engines[0].warm.median for shown in ordered])
            what = f"{first.bundle.name}, {first.entry}, {first.bundle.target} on {first.machine.cpu}"
            made.append(History(what, tuple(ordered), tuple(steps(medians))))
    return made


def steps(medians: NDArray[np.float64]) -> list[Shift]:
    """Where a series of medians steps, for good or for as long as it was watched.

    The series is split where that explains most, and each part again, as long as the parts differ by more than runs
    of one library do (2 %) and by more than four times what their scatter lets two means differ by.
    """
    logs = np.log(np.maximum(medians, 1e-9))
    cuts = sorted(_cuts(logs, 0))
    ends = [0, *cuts, len(logs)]
    levels = [float(np.median(logs[a:b])) for a, b in itertools.pairwise(ends)]
    return [Shift(cut, math.exp(levels[i + 1] - levels[i]) - 1) for i, cut in enumerate(cuts)]


def sections(found: Sequence[Shown]) -> list[Section]:
    """A section a history."""
    return [Section(f"Over {len(h.results)} runs: {h.what}", tuple(_parts(h))) for h in histories(found)]


def rows(history: History) -> list[tuple[str, ...]]:
    """One row a result: date, name, median, interval, version, digest, step."""
    at = {step.index: step for step in history.steps}
    made: list[tuple[str, ...]] = []
    for index, shown in enumerate(history.results):
        result = shown.result
        warm = result.engines[0].warm
        step = at.get(index)
        made.append(
            (
                result.after.date,
                shown.name,
                number(warm.median),
                f"{number(warm.interval.low)}–{number(warm.interval.high)}",
                number(warm.p99),
                result.engines[0].version,
                result.bundle.digest[:8],
                result.validity.state,
                "" if step is None else f"{step.change:+.1%}",
            )
        )
    return made


HEAD = ("date", "result", "median µs", "95 % interval", "p99", "version", "digest", "validity", "step")


def _parts(history: History) -> list[Part]:
    last = history.last_step
    words = (
        "No step: medians differ by no more than runs of one library do."
        if last is None
        else f"{len(history.steps)} step{'s' if len(history.steps) > 1 else ''}; the last one is {last.change:+.1%}, at "
        f"{history.results[last.index].name}."
    )
    runs = [(float(i), shown.result.engines[0].warm) for i, shown in enumerate(history.results, 1)]
    lines = [
        svg.Line("median", [(at, warm.median) for at, warm in runs], 0),
        svg.Line("p99", [(at, warm.p99) for at, warm in runs], 1),
    ]
    return [
        Text(words),
        Chart("Latency of every run, µs", svg.over_time("Median and p99 of every run", lines, "µs", "run")),
        Table("Every run", HEAD, tuple(rows(history)), left=2),
    ]


def _cuts(logs: NDArray[np.float64], offset: int) -> list[int]:
    count = logs.size
    if count < 2:
        return []
    gains = [
        index * (count - index) / count * float(logs[:index].mean() - logs[index:].mean()) ** 2
        for index in range(1, count)
    ]
    cut = 1 + int(np.argmax(gains))
    before, after = logs[:cut], logs[cut:]
    difference = abs(float(np.median(before) - np.median(after)))
    # One run alone cannot show how runs scatter: neighbours everywhere in the series can.
    jumps = np.abs(np.diff(logs))
    scatter = float(np.median(jumps)) / 0.954  # of a normal distribution: median |x - y| = 0.954 sigma
    certain = 4 * scatter * math.sqrt(1 / before.size + 1 / after.size)
    if difference <= max(math.log1p(MARGIN["median"]), certain):
        return []
    return [*_cuts(before, offset), offset + cut, *_cuts(after, offset + cut)]
