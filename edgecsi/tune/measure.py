"""Settings of one layer, measured: compiled into one small bundle, checked, and timed in turns on a device.

A candidate is an entry of that bundle: its inputs and output are the very bytes of the layer's tensors, halos and
groups included, handed over as float32. So every device that runs bundles can measure kernels, and the library that is
timed is made by the code that makes libraries for users.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi import bundle as bundles
from edgecsi import disk, verdict
from edgecsi.codegen.program import Call, Place, PlannedEntry
from edgecsi.errors import ConnectionLost, DeviceError, EdgecsiError, Unreachable
from edgecsi.kernels.base import Kernel
from edgecsi.kernels.records import Means, Record, Status
from edgecsi.kernels.variants import all_kernels
from edgecsi.kernels.workload import code, workload
from edgecsi.ops.operators import Op
from edgecsi.target import Target
from edgecsi.tune.isolated import Devices, TakingTurns, TuningDevice
from edgecsi.tune.search import Setting, Time
from edgecsi.tune.trial_bundle import NAME, trial_bundle

TOGETHER = 16
"""Candidates in one library."""
QUICK, CAREFUL = (3, 40), (12, 60)
"""Turns, and calls in a turn."""
EVICTION_BYTES = 8 << 20
COMPILING = threading.RLock()  # TVM's builder is not for several threads; meanwhile others measure
CLOCK_US = 0.01
"""What the clock of a usual machine cannot tell apart."""


@dataclass
class Measured:
    """A candidate with what became of it."""

    setting: Setting
    status: Status
    time: Time | None = None
    why: str = ""


@dataclass
class LayerBench:
    """Measures the settings of one layer on a device.

    Attributes:
        op: the layer. target: what to compile for. devices: where to run; the candidates of one library on one of them.
        beside: bytes that the rest of the network reads between two calls of this layer; as many are read before
            every call, so that a candidate meets the caches it will meet in place.
        count: count instructions instead of measuring time.
    """

    op: Op
    target: Target
    devices: Devices
    beside: int = 0
    count: bool = False
    outcomes: dict[Setting, Measured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = np.random.default_rng(0)
        self._inputs = [random_input(numbers, layout.shape, layout.dtype) for layout in self.op.inputs]
        with np.errstate(all="ignore"):
            self._expected = self.op.reference(*self._inputs)
        memory = [lay.store(x) for lay, x in zip(self.op.inputs, self._inputs, strict=True)]
        self._given = [_as_floats(m)[None] for m in memory]

    def quick(self, settings: Sequence[Setting]) -> list[Time | None]:
        """Times to rank by."""
        return self._measure(settings, *QUICK)

    def careful(self, settings: Sequence[Setting]) -> list[Time | None]:
        """Times to decide by: more turns, so that what disturbs one turn decides nothing. A count is counted once."""
        known = self.outcomes if self.count else {}
        self._measure([setting for setting in settings if setting not in known], *CAREFUL)
        return [self.outcomes[setting].time for setting in settings]

    def record(self, setting: Setting, cpu: str) -> Record:
        """The trial of a setting as a line for the file of records."""
        done = self.outcomes[setting]
        return Record(
            "trial", workload(self.op), self.op.name, setting.kernel, dict(setting.knobs),
            self.code(setting) if done.status != "refused" else "", self.target.id, cpu, version("apache-tvm"),
            self.means, done.time.median if done.time else 0.0, status=done.status, why=done.why[:200],
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip

    def code(self, setting: Setting) -> str:
        """Key of the code of a setting."""
        with COMPILING:
            return code(_kernel(setting), self.op, self.target, dict(setting.knobs))

    @property
    def means(self) -> Means:
        """How: ``measured`` or ``counted``."""
        return "counted" if self.count else "measured"

    def _measure(self, settings: Sequence[Setting], turns: int, calls: int) -> list[Time | None]:
        for start in range(0, len(settings), TOGETHER):
            self._together(settings[start : start + TOGETHER], turns, calls)
        return [self.outcomes[setting].time for setting in settings]

    def _together(self, settings: Sequence[Setting], turns: int, calls: int) -> None:
        with disk.scratch(runs=True) as folder:
            with COMPILING:
                entries: dict[Setting, PlannedEntry] = {}
                for index, setting in enumerate(settings):
                    try:
                        entries[setting] = self._entry(f"c{index}", setting)
                    except ValueError as error:  # knobs that do not fit each other
                        self.outcomes[setting] = Measured(setting, "refused", why=str(error))
                if not entries:
                    return
                bundle = trial_bundle(folder / NAME, list(entries.values()), self.target)
            with self.devices.one() as device:
                good = [s for s, e in entries.items() if self._answers(device, bundle, s, e.name)]
                if self.count:
                    for setting in good:
                        self._count(device, bundle, setting, entries[setting].name)
                else:
                    self._time(device, bundle, {s: entries[s].name for s in good}, turns, calls)

    def _answers(self, device: TuningDevice, bundle: bundles.Bundle, setting: Setting, entry: str) -> bool:
        """Whether a candidate returns what the reference does; if not, that is its outcome."""
        try:
            raw = np.asarray(device.run(bundle, entry, self._given))
        except EdgecsiError as error:
            self.outcomes[setting] = _failure(setting, error)
            return False
        size = self.op.y.size
        stored = np.ascontiguousarray(raw).reshape(-1).view(self.op.y.dtype)[:size]
        reason = _wrong(self.op.y.read(stored), self._expected)
        if reason:
            self.outcomes[setting] = Measured(setting, "wrong", why=reason)
        return not reason

    def _time(
        self,
        device: TuningDevice,
        bundle: bundles.Bundle,
        entries: dict[Setting, str],
        turns: int,
        calls: int,
    ) -> None:
        medians: dict[Setting, list[float]] = {setting: [] for setting in entries}
        flush = min(self.beside, EVICTION_BYTES)
        if entries and isinstance(device, TakingTurns):
            try:
                ns = device.time_in_turns(
                    bundle, list(entries.values()), self._given, turns, calls, flush_bytes=flush
                )
            except DeviceError as error:
                if isinstance(error, Unreachable | ConnectionLost):
                    raise
            else:  # if one did not end, it is found below
                each = np.median(ns[:, :, calls // 4 :], axis=2).T / 1e3
                medians, turns = dict(zip(entries, each.tolist(), strict=True)), 0
        for _ in range(turns):
            for setting, entry in entries.items():
                if setting not in medians:
                    continue
                try:
                    taken = device.time(bundle, entry, self._given, calls, flush_bytes=flush)
                except EdgecsiError as error:
                    self.outcomes[setting] = _failure(setting, error)
                    del medians[setting]
                    continue
                medians[setting].append(float(np.median(taken[calls // 4 :])) / 1e3)
        for setting, values in medians.items():
            middle = float(np.median(values))
            spread = float(np.median(np.abs(np.array(values) - middle))) * 1.4826  # of a normal distribution
            noise = max(
                1.96 * 1.2533 * spread / np.sqrt(len(values)), CLOCK_US
            )  # of the median of so many turns
            self.outcomes[setting] = Measured(setting, "ok", Time(middle, float(noise)))

    def _count(self, device: TuningDevice, bundle: bundles.Bundle, setting: Setting, entry: str) -> None:
        try:
            counted = device.count_instructions(bundle, entry, self._given) or 0
            self.outcomes[setting] = Measured(setting, "ok", Time(counted / 1e6))
        except EdgecsiError as error:
            self.outcomes[setting] = _failure(setting, error)

    def _entry(self, name: str, setting: Setting) -> PlannedEntry:
        """A candidate as an entry with one call."""
        op, target, kernel, knobs = self.op, self.target, _kernel(setting), dict(setting.knobs)
        function = kernel.emit(op, target, knobs)
        constants = [np.ascontiguousarray(c) for c in kernel.constants(op, target, knobs)]
        scratch = kernel.scratch(op, target, knobs)
        inputs = [bundles.Tensor(f"x{i}", (1, _floats(lay.nbytes))) for i, lay in enumerate(op.inputs)]
        places = [Place("in", i) for i in range(len(inputs))]
        places += [Place("constant", i) for i in range(len(constants))]
        places += [Place("out", 0), *([Place("workspace", 0)] if scratch else [])]
        report = {
            "name": op.name or "layer", "op": type(op).__name__.lower(), "kernel": kernel.name, "why": "a candidate",
            "knobs": knobs, "density": 1.0, "bits": 32, "bytes": 0, "macs": op.macs, "predicted_us": None,
        }  # fmt: skip
        call = Call(op.name or "layer", kernel.name, function, places, constants, report)
        return PlannedEntry(
            name, inputs, [bundles.Tensor("y", (1, _floats(op.y.nbytes)))], [call], -(-scratch // 64) * 64
        )


def _kernel(setting: Setting) -> Kernel:
    return all_kernels()[setting.kernel]


def _failure(setting: Setting, error: EdgecsiError) -> Measured:
    """What a device's error says of a candidate; an error that is the device's own goes on to the caller."""
    interrupted = str(signal.strsignal(signal.SIGINT)) in error.why  # Ctrl-C in a terminal reaches QEMU, too
    if not isinstance(error, DeviceError) or isinstance(error, Unreachable | ConnectionLost) or interrupted:
        raise error
    hung = "no end after" in error.why
    return Measured(setting, "hung" if hung else "crashed", why=f"{error.what}: {error.why}")


def _wrong(y: NDArray[Any], expected: NDArray[Any]) -> str:
    """How an answer is off; empty if it is right: codes within one, fp32 within rounding, half precision within its
    last digit."""
    with np.errstate(all="ignore"):
        apart = np.abs(y.astype(np.float64) - expected.astype(np.float64))
        share = float(np.finfo(np.float16).eps) if y.dtype == np.float16 else verdict.KERNEL
        allowed = 1.0 if y.dtype == np.uint8 else share * float(np.max(np.abs(expected), initial=1e-30))
    if bool((apart <= allowed).all()):
        return ""
    return (
        f"it differs from the reference by {float(np.max(apart, initial=0.0)):.3g}; {allowed:.3g} is rounding"
    )


def random_input(numbers: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """A layer's input to time it with: normally distributed numbers, or codes of the whole range."""
    if dtype.startswith("float"):
        return numbers.standard_normal(shape, np.float32).astype(dtype)
    return numbers.integers(0, 256, shape).astype(dtype)


def _floats(nbytes: int) -> int:
    return -(-nbytes // 4)


def _as_floats(memory: NDArray[Any]) -> NDArray[np.float32]:
    """The bytes of a tensor as float32, filled up."""
    raw = np.ascontiguousarray(memory).view(np.uint8)
    filled = np.zeros(4 * _floats(raw.size), np.uint8)
    filled[: raw.size] = raw
    return filled.view(np.float32)
