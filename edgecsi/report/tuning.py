"""The sections on what `edgecsi tune` found: default and best of every layer, what was tried, what limits it now."""

from __future__ import annotations

from edgecsi.report import svg
from edgecsi.report.content import Chart, Part, Section, Table, Text
from edgecsi.report.text import number
from edgecsi.tune.result import Candidate, TunedLayer, TuneResult

DRAWN = 12
"""Layers whose trials are drawn: those that take longest."""
FARTHEST = 2.5
"""Times of the default: settings slower than that are counted beside the drawing."""


def verdict(found: TuneResult) -> tuple[str, ...]:
    """What tuning brought, in sentences."""
    unit = _unit(found)
    what = f"{found.model}, tuned for {found.target} on {found.cpu}"
    sentences = [
        f"{what}: {name} takes {number(entry.tuned_us)} {unit}, {number(entry.default_us)} with the defaults; the ratio "
        f"is {entry.ratio:.3f} ({entry.low:.3f}–{entry.high:.3f})"
        + (", measured in turns." if found.means == "measured" else ".")
        for name, entry in found.entries.items()
    ]
    kept = sum(layer.kept for layer in found.layers)
    sentences.append(
        f"{kept} of {len(found.layers)} kinds of layers use another choice than the default; "
        f"{sum(layer.tried for layer in found.layers):,} settings were tried, "
        f"{sum(layer.failed for layer in found.layers):,} failed and were not used."
    )
    if found.means == "counted":
        sentences.append(
            "Instructions were counted under emulation: a proxy for time, and marked so in the records."
        )
    if found.slowed:
        sentences.append(f"The device was slowed down meanwhile: {', '.join(found.slowed)}.")
    if not found.complete:
        sentences.append("The search is not finished: time was up. The same command goes on.")
    return tuple(sentences)


def rows(found: TuneResult) -> list[dict[str, str | float | int | None]]:
    """The figures of every kind of layer."""
    common = {
        "model": found.model,
        "target": found.target,
        "cpu": found.cpu,
        "date": found.date,
        "means": found.means,
    }
    return [
        {
            **common,
            "layer": layer.layer,
            "default": _setting(layer.default),
            "best": _setting(layer.best),
            "default_us": layer.default_us,
            "best_us": layer.best_us,
            "kept": str(layer.kept),
            "tried": layer.tried,
            "failed": layer.failed,
        }
        for layer in found.layers
    ]


def sections(found: TuneResult, *, alone: bool) -> list[Section]:
    """The sections of one search; ``alone`` on a page, the verdict stands above already."""
    title = f"Tuning: {found.model} for {found.target}"
    known = f", {found.known:,} more were known" if found.known else ""
    return [
        Section(
            title,
            (
                *([] if alone else [Text(" ".join(verdict(found)))]),
                _layers(found),
                _default_and_best(found),
                Text(
                    f"{found.date}, on {found.device}: {found.measured:,} settings measured in {found.seconds:.0f} s"
                    f"{known}. Records: {found.records}. The next build for this target uses them."
                ),
            ),
        ),
        *([Section("What was tried", tuple(_tried(found)), level=3)] if found.layers else []),
    ]


def _layers(found: TuneResult) -> Table:
    unit = _unit(found)
    rows = [
        (
            layer.layer + (f" ×{len(layer.others) + 1}" if layer.others else ""),
            _setting(layer.default),
            _choice(layer),
            number(layer.default_us),
            number(layer.best_us),
            f"{layer.best_us / layer.default_us:.3f}" if layer.default_us else "–",
            str(layer.tried),
            _limit(layer),
        )
        for layer in found.layers
    ]
    head = (
        "layer",
        "default",
        "best",
        f"default {unit}",
        f"best {unit}",
        "ratio",
        "tried",
        "of the estimate",
    )
    return Table("Default and best of every kind of layer", head, tuple(rows), left=3)


def _default_and_best(found: TuneResult) -> Chart:
    unit = _unit(found)
    bars = [
        svg.Bar(f"{layer.layer}: {candidate.kernel}", us, f"{number(us)} {unit}", colour=colour)
        for layer in found.layers[:DRAWN]
        for candidate, us, colour in ((layer.default, layer.default_us, 5), (layer.best, layer.best_us, 0))
    ]
    return Chart(
        "Default and best",
        svg.bars("Default and best of every kind of layer", bars, [("default", 5), ("best", 0)]),
        "A layer alone, in turns. The estimate in the table is what the target's bandwidths and peaks say it takes at "
        "least, over what the best takes: near 100 %, only fewer bytes or operations will help.",
    )


def _tried(found: TuneResult) -> list[Part]:
    slowest = sorted(found.layers, key=lambda layer: -layer.default_us)
    parts: list[Part] = [
        Chart(
            f"{layer.layer}: every setting that was tried, by kernel",
            svg.strips(
                f"Settings tried for {layer.layer}",
                [
                    (f"{kernel}: {len(times)}, best {number(min(times))}", times)
                    for kernel, times in sorted(
                        layer.times.items(), key=lambda item: min(item[1], default=0.0)
                    )
                    if times
                ],
                ("default", layer.default_us),
                FARTHEST * layer.default_us,
                _unit(found),
            ),
            f"{layer.failed} failed." if layer.failed else "",
        )
        for layer in slowest[:DRAWN]
        if layer.default_us > 0
    ]
    if len(slowest) > DRAWN:
        parts.append(Text(f"The {DRAWN} that take longest of {len(slowest)} are drawn."))
    return parts


def _unit(found: TuneResult) -> str:
    return "µs" if found.means == "measured" else "M instr."


def _setting(candidate: Candidate) -> str:
    return " ".join([candidate.kernel, *(f"{name}={value}" for name, value in candidate.knobs.items())])


def _choice(layer: TunedLayer) -> str:
    if not layer.kept:
        return "the default"
    before, after = layer.default.knobs, layer.best.knobs
    if layer.best.kernel != layer.default.kernel:
        return _setting(layer.best)
    return " ".join(f"{name}={after[name]}" for name in after if after[name] != before.get(name))


def _limit(layer: TunedLayer) -> str:
    if layer.bound is None:
        return "–"
    return layer.bound if layer.share is None else f"{layer.share:.0%} ({layer.bound})"
