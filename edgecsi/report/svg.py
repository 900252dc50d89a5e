"""Charts as inline SVG: no library, no script, colours from the page's style. Every text is escaped; every mark has
a ``<title>``, which browsers show as a hint and read aloud.

Charts are drawn 400 units wide, so that their text is as large as the page's on a phone and grows on a screen.
Lengths start at zero; where an axis cannot, its start is broken and says so. Where a drawing decides where its texts
come to lie, no two lie over one another (:class:`_Labels`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from edgecsi.report.distribution import Distribution
from edgecsi.report.text import number

WIDTH = 400
COLOURS = 6
_left, _right, _bottom = 40, 10, 32


@dataclass(frozen=True)
class Bar:
    """A bar from zero; ``low`` to ``high`` is drawn as a whisker, ``text`` stands behind it."""

    label: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    colour: int = 0


@dataclass(frozen=True)
class Point:
    """A point of a plane; ``faded`` ones are outdone by others."""

    label: str
    x: float
    y: float
    hint: str
    faded: bool = False


@dataclass(frozen=True)
class Line:
    """A line over time; None leaves a gap."""

    label: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 0


def bars(title: str, items: Sequence[Bar], legend: Sequence[tuple[str, int]] = ()) -> Markup:
    """Horizontal bars from zero, one under the other, each with its label above it; ``legend`` names colours."""
    most = max([1e-12, *(max(bar.value, bar.high or 0) for bar in items)])
    parts, y = [], 4.0
    for bar in items:
        width = (WIDTH - 84) * bar.value / most
        parts.append(_text(2, y + 11, _short(bar.label, 58)))
        hint = f"{bar.label}: {bar.text}"
        parts.append(
            f'<rect class="f{bar.colour % COLOURS}" x="2" y="{y + 16:.1f}" width="{max(width, 0.5):.1f}" '
            f'height="14"><title>{escape(hint)}</title></rect>'
        )
        end = width
        if bar.low is not None and bar.high is not None:
            low, high = (2 + (WIDTH - 84) * value / most for value in (bar.low, bar.high))
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {y + 23:.1f}H{high:.1f}M{high:.1f} {y + 19:.1f}v8"/>'
            )
            end = max(end, high - 2)
        parts.append(_text(end + 8, y + 27, bar.text, "n"))
        y += 38
    parts += _legend([name for name, _ in legend], y + 12, [colour for _, colour in legend])
    return _svg(title, y + 2 + 16 * math.ceil(len(legend) / 2), parts)


def histogram(title: str, distribution: Distribution, marks: Sequence[tuple[str, float]]) -> Markup:
    """A distribution in its bins; areas are calls. The axis begins at zero if that leaves room to see it."""
    edges, counts = distribution.edges, distribution.counts
    high = edges[-1]
    from_zero = edges[0] < 0.6 * high
    low = 0.0 if from_zero else edges[0] - 0.06 * (high - edges[0])
    x = _Scale(low, high, _left, WIDTH - _right)
    densities = [c / (b - a) for c, a, b in zip(counts, edges, edges[1:], strict=False)]
    y = _Scale(0, max(densities) or 1.0, 150, 44)
    labels = _Labels()
    parts = [_x_axis(labels, x, 150, "µs", broken=not from_zero)]
    for count, density, a, b in zip(counts, densities, edges, edges[1:], strict=False):
        if count:
            hint = f"{number(a)} to {number(b)} µs: {count:,} calls"
            parts.append(
                f'<rect class="f0" x="{x(a):.1f}" y="{y(density):.1f}" width="{max(x(b) - x(a) - 0.3, 0.4):.1f}" '
                f'height="{150 - y(density):.1f}"><title>{escape(hint)}</title></rect>'
            )
    parts.append(_marks(labels, x, [(n, v) for n, v in marks if v <= high], 150))
    return _svg(title, 150 + _bottom, parts)


def cumulative(
    title: str, curves: Sequence[tuple[str, Distribution]], marks: Sequence[tuple[str, float]]
) -> Markup:
    """Shares of calls at most as slow, from zero, one curve an engine."""
    most = max(share[0] for _, d in curves for share in d.shares if share[1] <= 0.995 or len(d.shares) == 1)
    x, y = _Scale(0, most * 1.05 or 1.0, _left, WIDTH - _right), _Scale(0, 1, 170, 44)
    labels = _Labels()
    parts = [_x_axis(labels, x, 170, "µs")]
    for share in (0.25, 0.5, 0.75, 1.0):
        parts.append(f'<path class="grid" d="M{_left} {y(share):.1f}H{WIDTH - _right}"/>')
        parts.append(labels.put(f"{share:.0%}", [(_left - 4, y(share) + 3, "e")]))
    for index, (label, distribution) in enumerate(curves):
        path, last = f"M{x(0):.1f} {y(0):.1f}", 0.0
        for at, share in distribution.shares:
            if at > most * 1.05:
                break
            path += f"H{x(at):.1f}V{y(share):.1f}"
            last = share
        path += f"H{WIDTH - _right}" if last >= 0.999 else ""
        parts.append(f'<path class="s{index % COLOURS}" d="{path}"><title>{escape(label)}</title></path>')
    parts.append(_marks(labels, x, [(n, v) for n, v in marks if v <= most * 1.05], 170))
    return _svg(
        title, 170 + _bottom + 16 * math.ceil(len(curves) / 2), parts + _legend([n for n, _ in curves], 212)
    )


def scatter(title: str, points: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """Points of a plane, the x axis from zero; those that nothing outdoes are joined by a line."""
    ys = [point.y for point in points]
    margin = 0.15 * (max(ys) - min(ys)) or 1.0
    x = _Scale(0, 1.12 * max(point.x for point in points) or 1.0, _left, WIDTH - _right)
    y = _Scale(min(ys) - margin, max(ys) + margin, 220, 24)
    labels = _Labels()
    parts = [_x_axis(labels, x, 220, x_label), _y_axis(labels, y, y_label, 5)]
    front = sorted((p.x, p.y) for p in points if not p.faded)
    parts.append(f'<path class="front" d="M{"L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in front)}"/>')
    at = [(x(point.x), y(point.y)) for point in points]
    for right, down in at:
        labels.marks.append((right - 5, down - 5, right + 5, down + 5))
    for index, (point, (right, down)) in enumerate(zip(points, at, strict=True), 1):
        css = "faded" if point.faded else "f0"
        hint = f"{index}, {point.label}: {point.hint}"
        parts.append(
            f'<circle class="{css}" cx="{right:.1f}" cy="{down:.1f}" r="5"><title>{escape(hint)}</title></circle>'
        )
        # Labels are numbers that the table below explains: names would lie over one another.
        parts.append(labels.put(str(index), _around(right, down)))
    return _svg(title, 220 + _bottom, parts)


def over_time(title: str, lines: Sequence[Line], unit: str, along: str = "s") -> Markup:
    """Lines over seconds (or runs), both axes from zero."""
    seconds = max([1.0, *(at for line in lines for at, _ in line.points)])
    most = max([1e-12, *(value for line in lines for _, value in line.points if value is not None)])
    x, y = _Scale(0, seconds, _left, WIDTH - _right), _Scale(0, 1.1 * most, 150, 20)
    labels = _Labels()
    parts = [_x_axis(labels, x, 150, along), _y_axis(labels, y, unit, 4)]
    for line in lines:
        path, pen = "", "M"
        for at, value in line.points:
            if value is None:
                pen = "M"
                continue
            path += f"{pen}{x(at):.1f} {y(value):.1f}"
            pen = "L"
        parts.append(
            f'<path class="s{line.colour % COLOURS}" d="{path}"><title>{escape(line.label)}</title></path>'
        )
    height = 150 + _bottom + 16 * math.ceil(len(lines) / 2)
    return _svg(
        title, height, parts + _legend([line.label for line in lines], 192, [line.colour for line in lines])
    )


def strips(
    title: str, rows: Sequence[tuple[str, Sequence[float]]], mark: tuple[str, float], most: float, unit: str
) -> Markup:
    """Values as dots on a line, one line a row with its label above, from zero; a stroke at ``mark``. Values
    above ``most`` are counted in the label of their row."""
    labels = _Labels()
    most = min(most, max([1.02 * mark[1], *(1.05 * value for _, values in rows for value in values)]))
    x, bottom = _Scale(0, most, _left, WIDTH - _right), 22.0 + 34 * len(rows)
    parts = [_x_axis(labels, x, bottom, unit), _marks(labels, x, [mark], 20)]
    for index, (label, values) in enumerate(rows):
        y = 34.0 + 34 * index
        beyond = sum(value > most for value in values)
        words = f"; {beyond} beyond {_tick(most, 3)}" if beyond else ""
        parts.append(_text(2, y, _short(label, 54 - len(words)) + words))
        parts.append(f'<path class="grid" d="M{_left} {y + 12:.0f}H{WIDTH - _right}"/>')
        at = sorted({round(2 * x(value)) / 2 for value in values if value <= most})  # equal dots once
        dots = "".join(f"M{right:.1f} {y + 12:.0f}h0" for right in at)
        parts.append(f'<path class="mark" d="M{x(mark[1]):.1f} {y + 4:.0f}v16"/>')
        parts.append(f'<path class="dots s{index % COLOURS}" d="{dots}"/>' if dots else "")
    return _svg(title, bottom + _bottom, parts)


class _Scale:
    """From values to units of the drawing."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        self.low, self.high, self.begin, self.end = low, high if high > low else low + 1, begin, end

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self, about: int) -> list[float]:
        """Round values inside, some ``about``."""
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
        first = math.ceil(self.low / step)
        return [step * i for i in range(first, first + 2 * about + 2) if step * i <= self.high * (1 + 1e-9)]


Place = tuple[float, float, str]
"""Of a text: x, y of its baseline, and its class, which says what of it lies at x."""


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


class _Labels:
    """Texts whose place depends on the data: one that would lie over another, or over a line that is told of, goes
    elsewhere or is left out."""

    def __init__(self) -> None:
        self.texts: list[Box] = []
        self.marks: list[Box] = []

    def crosses_text(self, box: Box) -> bool:
        """Whether a text lies there."""
        return any(_meet(box, other) for other in self.texts)

    def find(self, text: str, places: Sequence[Place]) -> Place | None:
        """The first of these places that is free for a text, which takes it."""
        for place in places:
            box = _box(text, *place)
            inside = box[0] >= 0 and box[2] <= WIDTH and box[1] >= 0
            if inside and not self.crosses_text(box) and not any(_meet(box, other) for other in self.marks):
                self.texts.append(box)
                return place
        return None

    def put(self, text: str, places: Sequence[Place]) -> str:
        """The text at the first place that is free; nothing if none is."""
        found = self.find(text, places)
        return "" if found is None else _text(found[0], found[1], text, found[2])


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _box(text: str, x: float, y: float, css: str) -> Box:
    """Where a text of 12 px lies: left, top, right, bottom. Digits are 6.7 wide, few letters more than 7."""
    width = sum(10.5 if letter in "mwMW%@" else 6.8 for letter in text)
    left = x - (width if css == "e" else width / 2 if css == "m" else 0)
    return left, y - 10, left + width, y + 3


def _around(x: float, y: float) -> list[Place]:
    """Places for the name of a point, the nearest first."""
    return [
        place
        for far in (7, 14, 24)
        for place in (
            (x + far, y - far / 2, ""),
            (x - far, y - far / 2, "e"),
            (x + far, y + far + 3, ""),
            (x - far, y + far + 3, "e"),
            (x, y - far - 1, "m"),
            (x, y + far + 9, "m"),
        )
    ]


def _x_axis(labels: _Labels, x: _Scale, y: float, unit: str, broken: bool = False) -> str:
    parts = [f'<path class="axis" d="M{x.begin:.0f} {y:.0f}H{x.end:.0f}"/>']
    for tick in x.ticks(5):
        parts.append(f'<path class="axis" d="M{x(tick):.1f} {y:.0f}v4"/>')
        parts.append(labels.put(_tick(tick), [(x(tick), y + 15, "m"), (WIDTH, y + 15, "e")]))
    if broken:
        parts.append(f'<path class="axis" d="M{x.begin:.0f} {y:.0f}h4l2 -5l4 10l2 -5"/>')
    words = f"{unit}; the axis starts at {_tick(x.low, 3)}, not at 0" if broken else unit
    parts.append(labels.put(words, [(x.end, y + 29, "e")]))
    return "".join(parts)


def _y_axis(labels: _Labels, y: _Scale, unit: str, about: int) -> str:
    parts = [labels.put(unit, [(2, 12, "")])]
    for tick in y.ticks(about):
        parts.append(f'<path class="grid" d="M{_left} {y(tick):.1f}H{WIDTH - _right}"/>')
        parts.append(labels.put(_tick(tick), [(_left - 4, y(tick) + 3, "e"), (0, y(tick) + 3, "")]))
    return "".join(parts)


def _marks(labels: _Labels, x: _Scale, marks: Sequence[tuple[str, float]], bottom: float) -> str:
    """Vertical lines with their names above, on rows so that neighbours stay apart; a line without room for its name
    still has its hint."""
    parts: list[str] = []
    for name, value in sorted(marks, key=lambda mark: mark[1]):
        text, at = f"{name} {number(value)}", x(value)
        # A line begins beside its name, and must not cross another's.
        rows = [row for row in (12, 25, 38) if not labels.crosses_text((at - 1, row - 8, at + 1, 48))]
        sides = [(at + 3, ""), (at - 3, "e")]
        found = labels.find(text, [(side, row, css) for row in rows for side, css in sides])
        top = (46 if found is None else found[1]) - 8
        labels.marks.append((at - 1, top, at + 1, 48))
        parts.append(
            f'<path class="mark" d="M{at:.1f} {top:.0f}V{bottom:.0f}"><title>{escape(text)}</title></path>'
        )
        parts.append("" if found is None else _text(found[0], found[1], text, found[2]))
    return "".join(parts)


def _legend(names: Sequence[str], y: float, colours: Sequence[int] | None = None) -> list[str]:
    parts = []
    for index, name in enumerate(names):
        at = 2 + (index % 2) * (WIDTH / 2)
        row = y + 16 * (index // 2)
        colour = (colours[index] if colours else index) % COLOURS
        parts.append(f'<rect class="f{colour}" x="{at:.0f}" y="{row - 9:.0f}" width="10" height="10"/>')
        parts.append(_text(at + 15, row, _short(name, 25)))
    return parts


def _text(x: float, y: float, text: str, css: str = "") -> str:
    name = f' class="{css}"' if css else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _short(text: str, most: int) -> str:
    """A text that has room: names are told apart by their ends as much as by their beginnings."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - 1) // 2 :]}"


def _tick(value: float, digits: int = 4) -> str:
    """As short as an axis needs it: 2,500, 50k, 1.5M."""
    for power, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * power or (power == 1e6 and abs(value) >= power):
            return f"{value / power:.{digits}g}{name}"
    return "0" if value == 0 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _svg(title: str, height: float, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
