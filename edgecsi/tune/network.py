"""Tuning a network: its layers one by one, then the choices together, in place.

    layers ─▶ search each ─▶ confirm in place ─▶ records

Everything measured is written down at once, so an interrupted search goes on where it was: the same command finds its
trials and measures only what is left. A choice that wins alone and loses in the network is not kept.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgecsi import cpu, disk
from edgecsi import target as targets
from edgecsi.bench.environment import snapshot, throttling
from edgecsi.codegen.program import PlannedEntry
from edgecsi.device import open_device
from edgecsi.errors import (
    CheckFailed,
    ConnectionLost,
    EdgecsiError,
    TargetError,
    Unreachable,
    UsageError,
)
from edgecsi.kernels.records import Means, Record, Records, append, known_records, own_file, read_records
from edgecsi.kernels.variants import all_kernels, candidates, grid
from edgecsi.kernels.workload import workload
from edgecsi.lower.select_kernels import Choice
from edgecsi.progress import Progress
from edgecsi.target import Target
from edgecsi.tune import cycles, in_place
from edgecsi.tune.isolated import Devices, Isolated, TuningDevice, compiling_elsewhere
from edgecsi.tune.measure import COMPILING, LayerBench
from edgecsi.tune.result import InPlace, TuneResult
from edgecsi.tune.search import AT_ONCE, FINALISTS, LEAST_GAIN, Found, Setting, Space, Time, decide, search
from edgecsi.tune.work import (
    LoweredEntries,
    LoweredEntry,
    Work,
    choice_record,
    give_up,
    kinds_of,
    lowered_entries,
    so_far,
    tuned_layer,
    waits_for_memory,
    wins,
    with_found,
)

TRIALS = 64
COUNTED_AT_ONCE = 6
"""Settings that are compiled into one library where instructions are counted: there, linking it takes longest."""
AWAY_SECONDS = 600.0
"""How long a device may be away before the search ends; what was measured is kept."""


def tune(
    model: str,
    target: str,
    *,
    device: str | TuningDevice | Sequence[str] = "local",
    entry: str | None = None,
    weights: str | None = None,
    recipe: str | None = None,
    calib: str | None = None,
    input_shape: Sequence[int] | None = None,
    allow_random: bool = False,
    trials: int = TRIALS,
    minutes: float | None = None,
    batches: Sequence[int] = (),
    records: Path | None = None,
    settled: bool | datetime = False,
    recheck: bool = False,
    lowered: LoweredEntries | None = None,
    progress: Progress = lambda done, total, what: None,
) -> TuneResult:
    """Search the kernels and knobs of a network's layers on a device, and keep what is found.

    Args:
        model, weights, recipe, calib, input_shape, allow_random: as for building.
        target: what to compile for; the device must be able to run it.
        device: where to measure; ``emulate`` counts instructions. Several devices of one kind share the search, each
            measuring other layers; a tracker named twice gives two of its boards.
        entry: search this one; by default encoder and decoder, or full.
        trials: settings to measure for a layer, at most.
        minutes: wall-clock budget of the search. batches: also entries that take so many inputs at once.
        records: file to keep them in; by default the user's own for this target and CPU.
        settled: what was chosen before for a kind of layer stays, unmeasured; with a time, what was chosen since.
        recheck: search nothing; what was chosen before is measured again, and dropped if it wins no more.
        lowered: the entries as :func:`edgecsi.tune.work.lowered_entries` gave them before, for the same target.
        progress: called with (layers done, layers, what is being done).

    Raises:
        ModelError, RecipeError, DataError, TargetError: as building would.
        DeviceError: the device cannot run the target, or went away and did not come back.
        CheckFailed: no layer's default could be measured, so nothing was found.
    """
    began = time.monotonic()
    chosen_target = targets.load(target)
    wanted = [device] if isinstance(device, str) or not isinstance(device, Sequence) else list(device)
    opens = [open_tuning_device(one, chosen_target, number) for number, one in enumerate(wanted)]
    devices = [each for each, _ in opens]
    opened, counted = opens[0]
    if any(also != counted for _, also in opens):
        raise UsageError(
            "instructions and times do not mix", "one of the devices is `emulate`", "leave it away"
        )
    means: Means = "counted" if counted else "measured"
    cpu_name = _cpu_of(opened, chosen_target)
    path = records or own_file(chosen_target, cpu_name)
    lowered = lowered or lowered_entries(
        model, chosen_target, entry, weights, recipe, calib, input_shape, allow_random, batches
    )
    works = kinds_of(lowered)
    kept = known_records(chosen_target, [path], trials=True) if recheck else read_records([path])
    known = kept.trials(chosen_target, cpu_name, means)
    deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
    total = measured = 0
    complete = True

    lock = threading.Lock()
    # An emulator measures no time, so it may do so on every CPU.
    pool = Devices(devices * (len(os.sched_getaffinity(0)) if counted else 1))

    ended = threading.Event()

    def search_one(number: int, work: Work) -> None:
        nonlocal measured, complete, total
        if time.monotonic() > deadline:
            complete = False
            return

        def tell(setting: Setting, found: Time | None) -> None:
            nonlocal measured
            assert work.bench is not None
            if work.bench.outcomes[setting].status != "refused":
                append(path, [work.bench.record(setting, cpu_name)])
                with lock:
                    measured += 1
            work.note(setting, found)
            progress(
                number, len(works), f"{work.names[0]}: {measured} measured{so_far(work, works, counted)}"
            )

        progress(number, len(works), work.names[0])
        if settled or recheck:
            since = settled if isinstance(settled, datetime) else None
            work.found = _chosen_before(work, kept, chosen_target, since)
        if recheck and work.found is not None and work.found.best != work.default:
            work.found = _again(work, work.found.best, chosen_target, pool, counted, ended)
            with lock:
                measured += 2
        if recheck or work.found is not None:
            return
        found = _search(work, chosen_target, pool, counted, known, trials, deadline, tell, ended)
        with lock:
            total += found

    try:
        before = [snapshot(one.state()) for one in devices]
        with compiling_elsewhere(devices):
            _each(works, search_one, pool.count + 1, ended)
        searched = [work for work in works.values() if work.found is not None]
        if not searched:
            raise _nothing_found(model, opened, path if recheck else None, None if complete else minutes)
        progress(len(works), len(works), "confirming in place")
        entries = _confirm(lowered, works, chosen_target, opened, counted)
        append(
            path, [choice_record(work, chosen_target, cpu_name, means) for work in searched if work.changed]
        )
        after = [snapshot(one.state()) for one in devices]
        slowed = {ground for pair in zip(before, after, strict=True) for ground in throttling(*pair)[0]}
    finally:
        for one, each in zip(wanted, devices, strict=True):
            if isinstance(one, str):
                each.close()
    names = ", ".join(one.spec for one in devices)
    return TuneResult(
        model=model, target=chosen_target.id, cpu=cpu_name, device=names, means=means,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        layers=tuple(tuned_layer(work, chosen_target, counted) for work in searched),
        entries=entries, records=str(path), measured=measured, known=total,
        seconds=time.monotonic() - began, complete=complete, slowed=tuple(sorted(slowed)),
    )  # fmt: skip


def _chosen_before(work: Work, kept: Records, target: Target, since: datetime | None) -> Found | None:
    """What records say of a layer, those since a time if there is one."""
    before = kept.choice(work.choice.op, target)
    if before is None or (since is not None and datetime.fromisoformat(before[2].date) < since):
        return None
    kernel, knobs, record = before
    best, default = Setting.of(kernel.name, knobs), Time(record.default_us)
    return Found(best, default if best == work.default else Time(record.us), default)


def _nothing_found(
    model: str, device: TuningDevice, rechecked: Path | None, minutes: float | None
) -> EdgecsiError:
    """Why there is nothing to confirm: no choice in a file that was to be measured again, or too few minutes."""
    if rechecked is not None:
        return UsageError(
            f"nothing was chosen for {model} yet",
            f"{rechecked} has no choice for its layers",
            "tune it first",
        )
    if minutes is not None:
        return UsageError(
            f"nothing was found for {model} yet",
            f"{minutes:g} minutes were too few",
            "give it more --minutes",
        )
    return CheckFailed(
        f"nothing was found for {model} on {device.spec}",
        "no layer could be measured with its default kernel",
        "run `edgecsi doctor`; `--debug` shows what the device said",
    )


def _each(
    works: Mapping[str, Work], search_one: Callable[[int, Work], None], together: int, ended: threading.Event
) -> None:
    """Search every layer, one more at a time than can measure, so that something is compiled meanwhile; the first error
    ends it."""
    pool = ThreadPoolExecutor(together)
    try:
        for done in [pool.submit(search_one, number, work) for number, work in enumerate(works.values())]:
            done.result()
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)


def open_tuning_device(
    device: str | TuningDevice, target: Target, number: int = 0
) -> tuple[TuningDevice, bool]:
    """The device, and whether it counts; of several on this machine, the one of that number."""
    if isinstance(device, str):
        opened: TuningDevice = Isolated(device, number=number) if device == "local" else open_device(device)
    else:
        opened = device
    if opened.spec == "emulate":
        if not target.emulate:
            raise TargetError(
                f"{target.id} cannot be emulated", "QEMU has no CPU like it", "tune on the CPU itself"
            )
        return opened, True
    if opened.spec == "local" and (missing := target.missing_on_this_cpu()):
        raise UsageError(
            f"{target.id} cannot be tuned on this machine",
            f"this CPU lacks {', '.join(missing)}",
            "name the board with --device, or --device emulate to rank by instructions",
        )
    return opened, False


def _cpu_of(device: TuningDevice, target: Target) -> str:
    """LLVM's name of the CPU that is measured."""
    if device.spec == "local":
        return cpu.llvm_name() or target.mcpu
    return target.mcpu


def _search(
    work: Work,
    target: Target,
    devices: Devices,
    counted: bool,
    known: Mapping[tuple[Any, ...], Record],
    trials: int,
    deadline: float,
    tell: Callable[[Setting, Time | None], None],
    ended: threading.Event,
) -> int:
    """Search one layer; returns how many of its trials were known."""
    op = work.choice.op
    found, _ = candidates(op, target)
    work.bench = bench = LayerBench(op, target, devices, work.beside, counted)

    def predict(setting: Setting) -> float:
        kernel = all_kernels()[setting.kernel]
        try:
            return kernel.cost(op, target, dict(setting.knobs)).seconds
        except (ArithmeticError, ValueError, LookupError, AssertionError):
            return float("inf")

    space = Space(
        work.default,
        {kernel.name: (knobs, grid(kernel, op, target)) for kernel, knobs, _ in found},
        predict,
    )
    before: dict[Setting, Time | None] = {}
    for (layer, kernel, knobs), record in known.items():
        setting = Setting(kernel, knobs)
        if layer == workload(op) and kernel in space.kernels and _still(record, setting, bench):
            before[setting] = Time(record.us) if record.status == "ok" else None
            work.note(setting, before[setting])
    if counted and waits_for_memory(work.default, op, target):
        trials = 1
    work.found = search(
        space,
        lambda settings: _patiently(lambda: bench.quick(settings), ended),
        lambda settings: _patiently(lambda: bench.careful(settings), ended),
        trials,
        known=before,
        stop=lambda: time.monotonic() > deadline,
        tell=tell,
        at_once=COUNTED_AT_ONCE if counted else AT_ONCE,
    )
    if counted and work.found is not None:
        _hold_against_cycles(work, target)
    return len(before)


def _hold_against_cycles(work: Work, target: Target) -> None:
    """Of the settings with the fewest instructions, take the one that is estimated to take the fewest cycles; fewer
    instructions that take no fewer cycles, or wait for memory, are no gain."""
    found, op, default = work.found, work.choice.op, work.default
    assert found is not None
    counts = {setting: time.median for setting, time in found.tried.items() if time is not None}
    least = (1 - LEAST_GAIN) * counts[default]
    fewest = [s for s in sorted(counts, key=lambda s: counts[s])[:FINALISTS] if counts[s] < least]
    fewest = [s for s in fewest if not waits_for_memory(s, op, target)]
    for setting in (default, *fewest):
        with COMPILING:
            rate = cycles.an_instruction(all_kernels()[setting.kernel], op, target, dict(setting.knobs))
        if rate is not None:
            work.cycles[setting] = round(counts[setting] * rate, 4)
    if default in work.cycles:
        least = (1 - LEAST_GAIN) * work.cycles[default]
        fewest = [s for s in fewest if work.cycles.get(s, least) < least]
        fewest.sort(key=lambda s: work.cycles[s])
    if not fewest:
        give_up(work)
    elif fewest[0] != found.best:
        work.found = replace(found, best=fewest[0], best_time=Time(counts[fewest[0]]))


def _again(
    work: Work, best: Setting, target: Target, devices: Devices, counted: bool, ended: threading.Event
) -> Found | None:
    """An old choice held against the default again."""
    work.bench = bench = LayerBench(work.choice.op, target, devices, work.beside, counted)
    settings = [work.default, best]
    times = dict(zip(settings, _patiently(lambda: bench.careful(settings), ended), strict=True))
    return decide(work.default, times, times)


def _still(record: Record, setting: Setting, bench: LayerBench) -> bool:
    """Whether a trial is of the code that the kernel emits today."""
    try:
        return bench.code(setting) == record.code
    except (ValueError, KeyError):
        return False


def _patiently(measure: Callable[[], list[Time | None]], ended: threading.Event) -> list[Time | None]:
    """Measure, waiting for a device that went away; nothing is told any more once the search was ended."""
    gone = time.monotonic()
    wait = 1.0
    while True:
        if ended.is_set():
            raise CancelledError
        try:
            return measure()
        except (Unreachable, ConnectionLost):
            if time.monotonic() - gone > AWAY_SECONDS:
                raise
            ended.wait(wait)
            wait = min(2 * wait, 30.0)


def _confirm(
    lowered: LoweredEntries,
    works: Mapping[str, Work],
    target: Target,
    device: TuningDevice,
    counted: bool,
) -> dict[str, InPlace]:
    """Compare every entry with defaults and with choices; what loses in place becomes the default again."""
    compared: dict[str, InPlace] = {}
    for name, entry in lowered.items():
        keys = [workload(c.op) if isinstance(c, Choice) else "" for c in entry.chosen]

        def planned(
            label: str, use: set[str], e: LoweredEntry = entry, k: Sequence[str] = keys
        ) -> PlannedEntry:
            picked = [
                with_found(choice, works[key].found) if key in use and isinstance(choice, Choice) else choice
                for choice, key in zip(e.chosen, k, strict=True)
            ]
            return e.planned(label, target, picked)

        winners = {k for k in keys if k and (f := works[k].found) is not None and wins(f)}
        plans = {"default": planned("default", set()), "tuned": planned("tuned", winners)}
        if len(winners) > 1 and not counted:
            plans |= {f"without{i}": planned(f"without{i}", winners - {key}) for i, key in enumerate(winners)}
        with disk.scratch(runs=True) as folder:
            times = in_place.measure(plans, target, device, folder, counted)
            lost = {
                key for i, key in enumerate(winners)
                if f"without{i}" in times and in_place.faster(times[f"without{i}"], times["tuned"])
            }  # fmt: skip
            result = in_place.compare(times["default"], times["tuned"])
            if lost or (winners and not result.faster):
                better = winners - lost
                plans = {"default": plans["default"], "tuned": planned("tuned", better)}
                times = in_place.measure(plans, target, device, folder, counted)
                result = in_place.compare(times["default"], times["tuned"])
                if not result.faster:
                    lost = winners
            for key in lost:
                give_up(works[key])
            compared[name] = (
                result
                if winners - lost
                else replace(result, tuned_us=result.default_us, ratio=1.0, low=1.0, high=1.0)
            )
    return compared
