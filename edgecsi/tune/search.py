"""Finding the fastest setting of one layer with few measurements.

The spaces are small grids, tens to thousands of points a kernel, and a point costs a tenth of a second to compile. So:

1. every kernel that can compute the layer is measured with its own default knobs;
2. from each of those within `CLOSE` of the best, one knob at a time is set to every other value, and the best is kept,
   until no single change helps (coordinate descent);
3. the same from settings that the kernels' own estimates like most, of a random draw, until the trials are used up or
   `VAIN` such rounds brought nothing;
4. the few best and the default are measured again, in turns, and longer.

The default is always among the measured and wins ties: another setting is chosen only if its time is shorter by more
than the noise of both. The search asks for measurements through a function, so tests replay it on full dumps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Knobs = Mapping[str, int]
CLOSE = 1.3
FINALISTS = 4
ESTIMATED, DRAWN, VAIN = 256, 4, 3
LEAST_GAIN = 0.01
"""A setting that gains less is not worth a difference between two builds."""


@dataclass(frozen=True)
class Setting:
    """A kernel by name, with its knobs."""

    kernel: str
    knobs: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, kernel: str, knobs: Knobs) -> Setting:
        return cls(kernel, tuple(sorted(knobs.items())))


@dataclass(frozen=True)
class Time:
    """Median in µs (or in millions of instructions), and half the width of its interval."""

    median: float
    noise: float = 0.0


@dataclass
class Space:
    """What competes for one layer: the default, and every kernel with its default knobs and its grid."""

    default: Setting
    kernels: dict[str, tuple[Knobs, Mapping[str, Sequence[int]]]]
    predict: Callable[[Setting], float] = lambda setting: 0.0
    """The kernel's own estimate of a setting; infinite where it does not fit."""

    @property
    def size(self) -> int:
        """Points of all grids."""
        return sum(int(np.prod([len(v) for v in grid.values()])) for _, grid in self.kernels.values())


Measure = Callable[[Sequence[Setting]], Sequence[Time | None]]
Tell = Callable[[Setting, Time | None], None]


@dataclass
class Found:
    """What a search settled on. `tried` has every setting with its first time."""

    best: Setting
    best_time: Time
    default_time: Time
    tried: dict[Setting, Time | None] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """Share of the default's time that the best saves."""
        return 1 - self.best_time.median / self.default_time.median if self.default_time.median else 0.0


def search(
    space: Space,
    measure: Measure,
    confirm: Measure,
    trials: int,
    *,
    known: Mapping[Setting, Time | None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    tell: Tell = lambda setting, time: None,
    seed: int = 0,
) -> Found | None:
    """Search one layer.

    Args:
        space: what competes.
        measure: quick times of several settings, None for one that failed.
        confirm: careful times of a few settings, measured in turns.
        trials: settings to measure at most, those in `known` that it comes to included.
        known: what an interrupted search measured before. The search comes to each as if it measured it now, so that it
            ends where an unbroken one does.
        stop: asked between measurements, whether time is up.
        tell: told of every new measurement.
        seed: of what is drawn at random.

    Returns:
        What was found, or None if the default itself cannot be measured.
    """
    times: dict[Setting, Time | None] = {}
    known, left = known or {}, trials

    def look(settings: Sequence[Setting]) -> None:
        nonlocal left
        fresh = [s for s in dict.fromkeys(settings) if s not in times]
        fresh = fresh[: max(left, 0)]
        new = [s for s in fresh if s not in known]
        measured = dict(zip(new, measure(new), strict=True)) if new and not stop() else {}
        for setting in fresh:
            if setting in known or setting in measured:
                times[setting] = time = known[setting] if setting in known else measured[setting]
                left -= time is not None
            if setting in measured:
                tell(setting, time)

    def ranked(kernel: str = "") -> list[Setting]:
        good = [(t.median, s) for s, t in times.items() if t is not None and kernel in ("", s.kernel)]
        return [s for _, s in sorted(good, key=lambda item: item[0])]

    def median(setting: Setting) -> float:
        time = times[setting]
        assert time is not None
        return time.median

    firsts = [Setting.of(name, knobs) for name, (knobs, _) in space.kernels.items()]
    look([space.default, *firsts])
    if times.get(space.default) is None:
        return None
    close = [s for s in ranked() if median(s) <= CLOSE * median(ranked()[0])]
    for start in close:
        _descend(space, start, look, times)
    numbers, vain = np.random.default_rng(seed), 0
    while vain < VAIN and left > 0 and not stop():
        best = ranked()[0]
        for kernel in dict.fromkeys(s.kernel for s in close):
            drawn = _promising(space, kernel, DRAWN, numbers)
            look(drawn)
            good = [s for s in drawn if times.get(s) is not None]
            if good:
                _descend(space, min(good, key=median), look, times)
        vain = 0 if ranked()[0] != best else vain + 1

    times |= {setting: time for setting, time in known.items() if setting not in times}
    finalists = list(dict.fromkeys([space.default, *ranked()[:FINALISTS]]))
    final = dict(zip(finalists, confirm(finalists), strict=True))
    default = final[space.default] or times[space.default]
    assert default is not None
    others = [(s, t) for s, t in final.items() if t is not None and s != space.default]
    chosen, time = space.default, default
    if others:
        setting, found = min(others, key=lambda item: item[1].median)
        if default.median - found.median > max(LEAST_GAIN * default.median, found.noise + default.noise):
            chosen, time = setting, found
    return Found(chosen, time, default, times)


def _descend(
    space: Space,
    start: Setting,
    look: Callable[[Sequence[Setting]], None],
    times: Mapping[Setting, Time | None],
) -> None:
    """Change one knob at a time while that helps."""

    def median(setting: Setting) -> float:
        time = times.get(setting)
        return time.median if time is not None else float("inf")

    here = start
    while True:
        before = here
        for knob, values in space.kernels[start.kernel][1].items():
            around = [Setting.of(start.kernel, dict(here.knobs) | {knob: value}) for value in values]
            look(around)
            here = min([here, *around], key=median)
        if here == before:
            return


def _promising(space: Space, kernel: str, count: int, numbers: np.random.Generator) -> list[Setting]:
    """Those of a random draw of settings that the kernel's estimate likes most."""
    points = list(_points(space, kernel))
    order = numbers.permutation(len(points))[:ESTIMATED]
    predicted = sorted((space.predict(points[i]), rank, int(i)) for rank, i in enumerate(order))
    return [points[i] for estimate, _, i in predicted[:count] if np.isfinite(estimate)]


def _points(space: Space, kernel: str) -> Iterator[Setting]:
    grid = space.kernels[kernel][1]
    for values in itertools.product(*grid.values()):
        yield Setting.of(kernel, dict(zip(grid, values, strict=True)))
