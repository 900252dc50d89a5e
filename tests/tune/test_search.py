"""The search, replayed on spaces whose every point is known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecsi.tune.search import Setting, Space, Time, search

GRID = {"rows": (1, 2, 4, 8), "unroll": (1, 2, 4, 8), "sets": (1, 2, 4), "ahead": (0, 1, 2, 3)}


class Machine:
    """Times of all points, with noise; counts what it was asked."""

    def __init__(self, times: dict[Setting, float | None], noise: float = 0.0, seed: int = 0) -> None:
        self.times, self.noise, self.asked = times, noise, 0
        self.numbers = np.random.default_rng(seed)

    def quick(self, settings: Sequence[Setting]) -> list[Time | None]:
        self.asked += len(settings)
        return [self._time(s, self.noise) for s in settings]

    def careful(self, settings: Sequence[Setting]) -> list[Time | None]:
        return [self._time(s, self.noise / 4) for s in settings]

    def _time(self, setting: Setting, noise: float) -> Time | None:
        true = self.times[setting]
        return (
            None
            if true is None
            else Time(true * (1 + noise * self.numbers.standard_normal()), 1.96 * true * noise)
        )


def rugged(seed: int) -> tuple[Space, dict[Setting, float | None]]:
    """A space of 192 points a kernel, two kernels: smooth in each knob, with interactions and some that fail."""
    numbers = np.random.default_rng(seed)
    times: dict[Setting, float | None] = {}
    kernels = {}
    for name, base in (("loop", 10.0), ("sliced", 12.0)):
        best = {knob: numbers.integers(len(values)) for knob, values in GRID.items()}
        weight = {knob: numbers.uniform(0.02, 0.3) for knob in GRID}
        for index in np.ndindex(*(len(v) for v in GRID.values())):
            knobs = {k: GRID[k][i] for k, i in zip(GRID, index, strict=True)}
            away = {k: abs(i - best[k]) for k, i in zip(GRID, index, strict=True)}
            slower = sum(weight[k] * a for k, a in away.items()) + 0.02 * away["rows"] * away["unroll"]
            failed = numbers.random() < 0.05 and any(away.values())
            times[Setting.of(name, knobs)] = None if failed else base * (1 + slower)
        kernels[name] = ({k: v[0] for k, v in GRID.items()}, GRID)
        times[Setting.of(name, {k: v[0] for k, v in GRID.items()})] = base * 1.6
    return Space(Setting.of("loop", {k: v[0] for k, v in GRID.items()}), kernels), times


@pytest.mark.parametrize("seed", range(12))
def test_a_fifth_of_the_measurements_comes_within_three_percent(seed: int) -> None:
    space, times = rugged(seed)
    machine = Machine(times, noise=0.005, seed=seed)
    found = search(space, machine.quick, machine.careful, space.size // 5)
    assert found is not None
    best = min(t for t in times.values() if t is not None)
    reached = times[found.best]
    assert reached is not None
    assert reached <= 1.03 * best
    assert machine.asked <= space.size // 5 + sum(t is None for t in found.tried.values())


DUMPS = sorted((Path(__file__).parent / "spaces").glob("*.json"))


def dumped(path: Path) -> tuple[Space, dict[Setting, float | None]]:
    """A space of which every setting was measured: `python -m edgecsi.results.spaces`."""
    tree = json.loads(path.read_text())
    times: dict[Setting, float | None] = {}
    kernels = {}
    for name, kernel in tree["kernels"].items():
        kernels[name] = kernel["default"], kernel["grid"]
        every = itertools.product(*kernel["grid"].values())
        for values, time in zip(every, kernel["times"], strict=True):
            times[Setting.of(name, dict(zip(kernel["grid"], values, strict=True)))] = time
    return Space(Setting.of(tree["default"], kernels[tree["default"]][0]), kernels), times


@pytest.mark.parametrize("path", DUMPS, ids=lambda path: path.stem)
def test_a_fifth_of_the_measurements_comes_within_three_percent_on_real_spaces(path: Path) -> None:
    space, times = dumped(path)
    machine = Machine(times)
    found = search(space, machine.quick, machine.careful, space.size // 5)
    assert found is not None
    reached = times[found.best]
    assert reached is not None
    assert reached <= 1.03 * min(t for t in times.values() if t is not None)
    assert machine.asked <= space.size // 5 + sum(t is None for t in found.tried.values())


def test_there_are_spaces_of_two_cpus() -> None:
    """And at least four kernels of each."""
    kernels: dict[str, set[str]] = {}
    for path in DUMPS:
        tree = json.loads(path.read_text())
        kernels.setdefault(tree["cpu"], set()).update(tree["kernels"])
    assert len(kernels) >= 2
    assert all(len(found) >= 4 for found in kernels.values())


def test_the_default_wins_ties_and_noise() -> None:
    space, times = rugged(0)
    flat: dict[Setting, float | None] = dict.fromkeys(times, 10.0)
    chosen = set()
    for seed in range(40):
        machine = Machine(flat, noise=0.02, seed=seed)
        found = search(space, machine.quick, machine.careful, 40)
        assert found is not None
        chosen.add(found.best)
    assert chosen == {space.default}


def test_what_failed_is_never_chosen() -> None:
    space, times = rugged(1)
    best = min((s for s, t in times.items() if t is not None), key=lambda s: times[s] or 0)
    times[best] = None
    machine = Machine(times)
    found = search(space, machine.quick, machine.careful, space.size)
    assert found is not None
    assert found.best != best
    assert times[found.best] is not None


def test_a_default_that_cannot_be_measured_ends_the_search() -> None:
    space, times = rugged(2)
    times[space.default] = None
    machine = Machine(times)
    assert search(space, machine.quick, machine.careful, 50) is None


def test_an_interrupted_search_goes_on_where_it_was() -> None:
    space, times = rugged(3)
    whole = Machine(times)
    unbroken = search(space, whole.quick, whole.careful, 80)
    assert unbroken is not None

    class Killed(Exception):
        pass

    known: dict[Setting, Time | None] = {}
    broken = Machine(times)
    while True:
        before = len(known)

        def tell(setting: Setting, time: Time | None, before: int = before) -> None:
            known[setting] = time
            if len(known) >= before + 7:
                raise Killed

        try:
            again = search(space, broken.quick, broken.careful, 80, known=known, tell=tell)
        except Killed:
            continue
        break
    assert again is not None
    assert again.best == unbroken.best
    assert known == unbroken.tried


def test_time_that_is_up_ends_the_search_with_what_there_is() -> None:
    space, times = rugged(4)
    machine = Machine(times)
    found = search(space, machine.quick, machine.careful, 100, stop=lambda: machine.asked >= 10)
    assert found is not None
    assert machine.asked <= 20


@given(st.integers(0, 1000), st.integers(1, 60))
def test_the_choice_is_never_slower_than_the_default(seed: int, trials: int) -> None:
    space, times = rugged(seed)
    machine = Machine(times)
    found = search(space, machine.quick, machine.careful, trials)
    assert found is not None
    default, best = times[space.default], times[found.best]
    assert default is not None
    assert best is not None
    assert best <= default
