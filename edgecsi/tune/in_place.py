"""Whole networks with different choices, in one library, timed in turns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgecsi.bench.statistics import ratio
from edgecsi.codegen.program import PlannedEntry
from edgecsi.device.samples import some_call
from edgecsi.target import Target
from edgecsi.tune.isolated import TakingTurns, TuningDevice
from edgecsi.tune.result import InPlace
from edgecsi.tune.trial_bundle import NAME, trial_bundle

TURNS, CALLS = 40, 40
ENOUGH_TURNS, PATIENCE = 12, 60.0
"""Turns that are enough after so many seconds: every turn is a message, and a device may be far away."""

Turns = list[NDArray[np.float64]]
"""µs of single calls, one array a turn; for counted networks one turn of one number, in millions of instructions."""


def measure(
    plans: Mapping[str, PlannedEntry], target: Target, device: TuningDevice, folder: Path, counted: bool
) -> dict[str, Turns]:
    """Time planned networks in turns.

    Args:
        plans: entries with the names of the keys, of equal inputs and outputs.

    Raises:
        DeviceError: the device went away, or a network crashed.
    """
    bundle = trial_bundle(folder / NAME, list(plans.values()), target)
    x = some_call(next(iter(plans.values())).inputs)
    if counted:
        counts = {name: device.count_instructions(bundle, name, x) or 0 for name in plans}
        return {name: [np.array([count / 1e6])] for name, count in counts.items()}
    if isinstance(device, TakingTurns):
        ns = device.time_in_turns(bundle, list(plans), x, TURNS, CALLS)[:, :, CALLS // 4 :] / 1e3
        return {name: list(ns[:, number]) for number, name in enumerate(plans)}
    turns: dict[str, Turns] = {name: [] for name in plans}
    began = time.monotonic()
    for turn in range(TURNS):
        if turn >= ENOUGH_TURNS and time.monotonic() - began > PATIENCE:
            break
        for name in plans:
            turns[name].append(device.time(bundle, name, x, CALLS)[CALLS // 4 :] / 1e3)
    return turns


def compare(default: Turns, tuned: Turns) -> InPlace:
    """The ratio of two networks measured in the same turns."""
    before, after = (float(np.median(np.concatenate(turns))) for turns in (default, tuned))
    if len(default) == 1:
        return InPlace(before, after, after / before, after / before, after / before)
    found = ratio(tuned, default)
    return InPlace(before, after, found.ratio, found.interval.low, found.interval.high)


def faster(one: Turns, other: Turns) -> bool:
    """Whether ``one`` takes less time than ``other``, by more than noise."""
    return compare(other, one).faster
