"""The measuring protocol (docs/how-we-measure.md): warm-up, interleaved turns, cold L2, cold start.

Everything timed here is a plain callable without arguments: one call, one sample. All times are nanoseconds.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.bench import statistics
from edgecsi.bundle import Bundle
from edgecsi.device import Device
from edgecsi.device.protocol import EVICTION_BYTES, MeasuringProtocol, Nanoseconds, Series
from edgecsi.progress import Progress

__all__ = ["FULL", "QUICK", "Call", "Nanoseconds", "Series", "interleave", "timed"]

Call = Callable[[], object]
FULL = MeasuringProtocol(quick=False, samples=1000, seconds=10.0)
QUICK = MeasuringProtocol(quick=True, samples=200, seconds=0.5, limit=10.0, cold_samples=50, cold_starts=3)


def interleave(
    calls: Mapping[str, Call], protocol: MeasuringProtocol, progress: Progress | None = None
) -> dict[str, Series]:
    """Measures several engines in turns, A B B A, so that every engine meets the same machine and follows every
    other one as often.

    Args:
        calls: name → one inference.
        protocol: how much.
        progress: told after every round.

    Returns:
        name → series; all have the same number of rounds.
    """
    with undisturbed():
        settled: dict[str, bool] = {}
        length: dict[str, int] = {}
        for name, call in calls.items():
            if progress is not None:
                progress(0.0, 1.0, f"warming up {name}")
            settled[name], median = warm_up(call)
            length[name] = max(protocol.turn_calls, math.ceil(protocol.turn * 1e9 / median))

        rounds: dict[str, list[Nanoseconds]] = {name: [] for name in calls}
        counted = dict.fromkeys(calls, 0)
        spent = dict.fromkeys(calls, 0.0)
        computed = dict.fromkeys(calls, 0.0)
        share, complete, order = 0.0, False, list(calls.items())
        while not complete and min(spent.values(), default=protocol.limit) < protocol.limit:
            for name, call in order:
                for _ in range(protocol.settle):
                    call()
                begin = time.process_time()
                turn = timed(call, length[name])
                computed[name] += time.process_time() - begin
                rounds[name].append(turn)
                counted[name] += turn.size
                spent[name] += float(turn.sum()) / 1e9
            order.reverse()
            share = min(min(counted.values()) / protocol.samples, min(spent.values()) / protocol.seconds, 1.0)
            complete = share >= 1.0
            if progress is not None:
                progress(share, 1.0, "measuring")
        cold = cold_l2(calls, protocol.cold_samples, progress)
    return {
        name: Series(
            rounds[name], cold[name], settled[name], complete, computed[name] / max(spent[name], 1e-9)
        )
        for name in calls
    }


def warm_up(call: Call, block: float = 0.02, limit: float = 5.0) -> tuple[bool, float]:
    """Calls until the medians of two successive blocks agree within 2 %.

    Args:
        call: one inference.
        block: seconds per block (at least five calls).
        limit: seconds after which it gives up.

    Returns:
        Whether it settled, and the last median in ns (at least 1).
    """
    begin = time.perf_counter()
    call()
    previous = max(1.0, float(np.median(timed(call, 3))))
    while True:
        current = max(1.0, float(np.median(timed(call, max(5, math.ceil(block * 1e9 / previous))))))
        if statistics.agree(previous, current):
            return True, current
        if time.perf_counter() - begin > limit:
            return False, current
        previous = current


def cold_l2(
    calls: Mapping[str, Call], samples: int, progress: Progress | None = None
) -> dict[str, Nanoseconds]:
    """Times single calls, each after reading 8 MB: on a device other code runs between two inferences."""
    other = np.ones(EVICTION_BYTES // 8, dtype=np.int64)
    measured: dict[str, list[Nanoseconds]] = {name: [] for name in calls}
    for done in range(samples):
        for name, call in calls.items():
            other.sum()
            measured[name].append(timed(call, 1))
        if progress is not None:
            progress(done + 1, samples, "measuring with a cold L2")
    return {name: np.concatenate(parts) for name, parts in measured.items()}


def c_calls_in_turns(
    bundles: Sequence[Bundle],
    entry: str,
    device: Device,
    samples: Sequence[NDArray[Any]],
    calls: Sequence[int],
    turns: int,
    settle: int,
    progress: Progress | None = None,
) -> list[list[NDArray[np.float64]]]:
    """C calls of several libraries on a device, A B B A.

    Args:
        bundles: the libraries; one of them may be there twice.
        entry: of them all.
        device: where.
        samples: of one call.
        calls: of a turn, for each library.
        turns: how many.
        settle: untimed calls at the start of a turn.
        progress: told before every turn.

    Returns:
        For each library, nanoseconds of the calls of each turn.
    """
    rounds: list[list[NDArray[np.float64]]] = [[] for _ in bundles]
    order = list(range(len(bundles)))
    for turn in range(turns):
        if progress is not None:
            progress(turn, turns, "measuring in turns")
        for which in order:
            times = device.time(bundles[which], entry, samples, settle + calls[which])
            rounds[which].append(times[settle:])
        order.reverse()
    return rounds


def timed(call: Call, count: int) -> Nanoseconds:
    """``count`` calls, one sample each, in ns."""
    clock = time.perf_counter_ns
    samples = np.empty(count, dtype=np.int64)
    for index in range(count):
        begin = clock()
        call()
        samples[index] = clock() - begin
    return samples


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection between two clock readings (as ``timeit`` does)."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
