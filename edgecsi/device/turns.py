"""The measuring protocol for one engine, where a device can only time so many calls at once.

``native/remote.c`` does the same on the device itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgecsi.device.protocol import EVICTION_BYTES, MeasuringProtocol, Nanoseconds, Series
from edgecsi.progress import Progress

BLOCK = 0.02
WARM_SECONDS = 5.0
AGREE = 0.02

Keep = Callable[[str, Nanoseconds], None]
Timed = Callable[[int, int], NDArray[np.float64]]
"""(calls, bytes to read before each) → nanoseconds of each."""


def in_turns(
    timed: Timed, protocol: MeasuringProtocol, progress: Progress | None = None, keep: Keep | None = None
) -> Series:
    """Warm up until the medians of two blocks agree; then calls with a cold L2 cache (first, so that a series that
    breaks off has them); then turns, each after a few calls that are not counted.

    Args:
        timed: times calls.
        protocol: how much.
        progress: told after every turn.
        keep: given the cold calls and every turn as soon as they are there.
    """
    begin = time.monotonic()
    settled, median = False, _median(timed(4, 0)[1:])
    while not settled and time.monotonic() - begin < WARM_SECONDS:
        previous = median
        median = _median(timed(max(5, math.ceil(BLOCK * 1e9 / previous)), 0))
        settled = abs(median - previous) <= AGREE * min(median, previous)
    cold = timed(protocol.cold_samples, EVICTION_BYTES).astype(np.int64)
    if keep is not None:
        keep("cold", cold)
    length = max(protocol.turn_calls, math.ceil(protocol.turn * 1e9 / median))
    rounds: list[Nanoseconds] = []
    counted, spent, complete = 0, 0.0, False
    while not complete and spent < protocol.limit:
        turn = timed(protocol.settle + length, 0)[protocol.settle :]
        rounds.append(turn.astype(np.int64))
        if keep is not None:
            keep("turn", rounds[-1])
        counted += turn.size
        spent += float(turn.sum()) / 1e9
        complete = counted >= protocol.samples and spent >= protocol.seconds
        if progress is not None:
            progress(min(counted / protocol.samples, spent / protocol.seconds, 1.0), 1.0, "measuring")
    return Series(rounds, cold, settled, complete, threads=1.0)


def _median(ns: NDArray[np.float64]) -> float:
    return max(1.0, float(np.median(ns)))
