"""Finding the fastest setting of one layer with few measurements.

The spaces are small grids, tens to thousands of points a kernel, and a point costs a tenth of a second to compile. So:

1. every kernel that can compute the layer is measured with its own default knobs; those within `CLOSE` of the best go on;
2. a Gaussian process over the grids (logarithms of times; near settings take nearly the same) says of every setting what
   it will take and how sure that is, and the few are measured next that may be fastest, until the trials are used up or
   `VAIN` of them in a row brought nothing;
3. the few best and the default are measured again, in turns, and longer.

Of a grid with more than `MANY` settings those compete that the kernel's own estimate likes most.

The default is always among the measured and wins ties: another setting is chosen only if its time is shorter by more
than the noise of both. The search asks for measurements through a function, so tests replay it on full dumps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Knobs = Mapping[str, int]
CLOSE = 1.3
FINALISTS = 4
MANY, AT_ONCE, VAIN = 2048, 3, 15
LEAST_GAIN = 0.01
"""A setting that gains less is not worth a difference between two builds."""
_WIDTH, _APART, _NOISE, _LEAST_VARIANCE = 2.0, 2.0, 1e-3, 0.01
"""Of the process: a grid's width, two kernels' distance, what of the variance is noise, the least variance."""
_ALIKE = 1.5  # the distance over which the correlation falls to 1/e


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
    at_once: int = AT_ONCE,
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
        at_once: settings to measure before the process is asked again.

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

    def ranked() -> list[Setting]:
        good = [(t.median, s) for s, t in times.items() if t is not None]
        return [s for _, s in sorted(good, key=lambda item: item[0])]

    def median(setting: Setting) -> float:
        time = times[setting]
        assert time is not None
        return time.median

    firsts = [Setting.of(name, knobs) for name, (knobs, _) in space.kernels.items()]
    look([space.default, *firsts])
    if times.get(space.default) is None:
        return None
    close = {s.kernel for s in ranked() if median(s) <= CLOSE * median(ranked()[0])}
    grids = _Grids(space, [kernel for kernel in space.kernels if kernel in close])
    vain = 0
    while vain < VAIN and left > 0 and not stop():
        best = median(ranked()[0])
        promising = grids.promising(
            {s: t.median for s, t in times.items() if t is not None}, set(times), at_once
        )
        if not promising:
            break
        look(promising)
        vain = 0 if median(ranked()[0]) < (1 - LEAST_GAIN) * best else vain + len(promising)

    times |= {setting: time for setting, time in known.items() if setting not in times}
    finalists = list(dict.fromkeys([space.default, *ranked()[:FINALISTS]]))
    final = dict(zip(finalists, confirm(finalists), strict=True))
    final[space.default] = final[space.default] or times[space.default]
    return decide(space.default, final, times)


def decide(
    default_setting: Setting, final: Mapping[Setting, Time | None], tried: dict[Setting, Time | None]
) -> Found | None:
    """The default, or what is faster by more than noise, of settings measured in turns; None without the default."""
    default = final[default_setting]
    if default is None:
        return None
    others = [(s, t) for s, t in final.items() if t is not None and s != default_setting]
    chosen, time = default_setting, default
    if others:
        setting, found = min(others, key=lambda item: item[1].median)
        if default.median - found.median > max(LEAST_GAIN * default.median, found.noise + default.noise):
            chosen, time = setting, found
    return Found(chosen, time, default, tried)


class _Grids:
    """The settings of some kernels, and what is to be expected of them."""

    def __init__(self, space: Space, kernels: Sequence[str]) -> None:
        self.settings = [setting for kernel in kernels for setting in _points(space, kernel)]
        self._index = {setting: i for i, setting in enumerate(self.settings)}
        names = sorted({knob for kernel in kernels for knob in space.kernels[kernel][1]})
        self._at = np.zeros((len(self.settings), len(names)))
        self._kernel = np.array([kernels.index(setting.kernel) for setting in self.settings], int)
        for row, setting in zip(self._at, self.settings, strict=True):
            grid = space.kernels[setting.kernel][1]
            for knob, value in setting.knobs:
                if len(grid[knob]) > 1:
                    row[names.index(knob)] = _WIDTH * list(grid[knob]).index(value) / (len(grid[knob]) - 1)

    def promising(
        self, times: Mapping[Setting, float], done: Collection[Setting], count: int
    ) -> list[Setting]:
        """The settings not done that may be fastest: expected logarithm of the time less its standard deviation."""
        known = np.array([self._index[setting] for setting in times if setting in self._index], int)
        if not len(known):
            return []
        logs = np.log([times[self.settings[i]] for i in known])
        mean = np.full(len(self.settings), logs.mean())
        for kernel in np.unique(self._kernel[known]):
            mean[self._kernel == kernel] = logs[self._kernel[known] == kernel].mean()
        rest = logs - mean[known]
        variance = max(float(rest.var()), _LEAST_VARIANCE)
        alike = self._alike(np.arange(len(self.settings)), known)
        inverse = np.linalg.inv(alike[known] + _NOISE * np.eye(len(known)))
        expected = mean + alike @ (inverse @ rest)
        deviation = np.sqrt(variance * np.maximum(1 - ((alike @ inverse) * alike).sum(1), 0))
        order = np.argsort(expected - deviation, kind="stable")
        return [self.settings[i] for i in order if self.settings[i] not in done][:count]

    def _alike(self, some: NDArray[np.int_], others: NDArray[np.int_]) -> NDArray[np.float64]:
        apart = np.abs(self._at[some][:, None] - self._at[others][None]).sum(-1) / _ALIKE
        other_kernel = self._kernel[some][:, None] != self._kernel[others][None]
        return np.asarray(np.exp(-apart - _APART * other_kernel))


def _points(space: Space, kernel: str) -> list[Setting]:
    """The settings of a grid, the last knob changing fastest; of very many those that the estimate likes most."""
    default, grid = space.kernels[kernel]
    every = [
        Setting.of(kernel, dict(zip(grid, values, strict=True)))
        for values in itertools.product(*grid.values())
    ]
    if len(every) <= MANY:
        return every
    estimated = {setting: space.predict(setting) for setting in every}
    return sorted(every, key=lambda setting: (setting != Setting.of(kernel, default), estimated[setting]))[
        :MANY
    ]
