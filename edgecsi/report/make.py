"""Results to a report, in the order in which it is read: the verdict, then why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgecsi.errors import UsageError
from edgecsi.report import one, several, trend, tuning
from edgecsi.report.content import Report, Text
from edgecsi.report.read import Shown
from edgecsi.report.text import number
from edgecsi.tune.result import TuneResult

_WORST = ("invalid", "suspect", "valid")


def make_report(
    found: Sequence[Shown],
    tuned: Sequence[TuneResult] = (),
    *,
    title: str | None = None,
    baseline: str | None = None,
) -> Report:
    """The report of one result or of many, and of what tuning found.

    Args:
        found, tuned: see :func:`edgecsi.report.read.read`; one of both at least.
        title: instead of the name of what was measured.
        baseline: an engine, or with several results the name of one of them.

    Raises:
        UsageError: nothing is called ``baseline``.
    """
    alone = len(tuned) == 1 and not found
    searches = [section for search in tuned for section in tuning.sections(search, alone=alone)]
    if not found:
        first = tuned[0]
        return Report(
            title or f"{first.model}, tuned for {first.target}",
            first.means,
            tuple(sentence for search in tuned for sentence in tuning.verdict(search)),
            tuple(searches),
            tuple(row for search in tuned for row in tuning.rows(search)),
        )
    report = _of_results(found, title, baseline)
    return replace(report, sections=(*report.sections, *searches))


def _of_results(found: Sequence[Shown], title: str | None, baseline: str | None) -> Report:
    rows = tuple(row for shown in found for row in _rows(shown))
    if len(found) == 1:
        first = found[0]
        names = [engine.name for engine in first.result.engines]
        if baseline is not None and baseline not in names:
            raise UsageError(
                f"nothing here is called {baseline}",
                f"the result has the engines {', '.join(names) or 'none'}",
                "give one of these as --baseline",
            )
        return Report(
            title or f"{first.result.bundle.name}, {first.result.entry}: latency",
            first.result.validity.state,
            one.verdict(first),
            tuple(one.sections(first, baseline)),
            rows,
        )
    sections = several.sections(found, baseline) + trend.sections(found)
    for shown in found:
        inner = one.sections(shown, baseline)
        words = one.verdict(shown)
        head = replace(inner[0], title=shown.label, parts=(Text(" ".join(words)), *inner[0].parts))
        sections += [head, *(replace(section, level=3) for section in inner[1:])]
    measured = [shown for shown in found if shown.result.instructions is None]
    states = [shown.result.validity.state for shown in measured or found]
    return Report(
        title or f"{len(found)} results",
        next(state for state in _WORST if state in states),
        _verdict(found),
        tuple(sections),
        rows,
    )


def _verdict(found: Sequence[Shown]) -> tuple[str, ...]:
    timed = [shown for shown in found if shown.result.engines]
    counted = sum(shown.result.instructions is not None for shown in found)
    kinds = {
        "latencies": len(timed),
        "instruction counts only": counted,
        "samples a second": len(found) - len(timed) - counted,
    }
    words = [f"{count} with {kind}" for kind, count in kinds.items() if count]
    sentences = [
        f"{len(found)} results"
        + (f": {', '.join(words)}." if len(words) > 1 else f", {words[0][len(str(len(found))) + 1 :]}.")
    ]
    states = [shown.result.validity.state for shown in found if shown.result.instructions is None]
    for state in ("suspect", "invalid"):
        if count := states.count(state):
            sentences.append(f"{count} of the measured ones {'is' if count == 1 else 'are'} {state}.")
    if states and set(states) == {"valid"}:
        sentences.append("Every measured one is valid.")
    by_work: dict[tuple[str, str], list[Shown]] = {}
    for shown in timed:
        by_work.setdefault((shown.result.machine.cpu, shown.result.entry), []).append(shown)
    for (cpu, entry), group in by_work.items():
        fastest = min(group, key=lambda shown: shown.result.engines[0].warm.median)
        if len(group) > 1:
            sentences.append(
                f"The fastest {entry} on {cpu} is {fastest.label}: "
                f"{number(fastest.result.engines[0].warm.median)} µs."
            )
    missed = [shown.label for shown in found if shown.result.deadline and not shown.result.deadline.met]
    if missed:
        sentences.append(f"The deadline is missed by {', '.join(missed)}.")
    return tuple(sentences)


def _rows(shown: Shown) -> list[dict[str, str | float | int | None]]:
    result = shown.result
    common: dict[str, str | float | int | None] = {
        "result": shown.name,
        "bundle": result.bundle.name,
        "recipe": result.bundle.recipe,
        "entry": result.entry,
        "target": result.bundle.target,
        "device": result.device,
        "cpu": result.machine.cpu,
        "date": result.after.date,
        "validity": result.validity.state,
        "library_bytes": result.bundle.library_bytes,
        "nmse_db": result.bundle.nmse_db,
    }
    if not result.engines:
        return [common | {"instructions": result.instructions}]
    return [
        common
        | {
            "engine": engine.name,
            "version": engine.version,
            "samples": engine.warm.samples,
            "median_us": engine.warm.median,
            "low_us": engine.warm.interval.low,
            "high_us": engine.warm.interval.high,
            "p90_us": engine.warm.p90,
            "p95_us": engine.warm.p95,
            "p99_us": engine.warm.p99,
            "max_us": engine.warm.maximum,
            "cold_us": engine.cold.median,
            "c_call_us": result.c_call.median if result.c_call and engine is result.engines[0] else None,
            "max_rel_diff": engine.answer.max_rel_diff,
        }
        for engine in result.engines
    ]
