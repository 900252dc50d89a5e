"""``local``: this CPU."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi import cpu
from edgecsi.bundle import Bundle, Loaded
from edgecsi.device import state as states
from edgecsi.device.protocol import (
    EMPTY_CALLS,
    Array,
    DeviceInfo,
    FirstCall,
    MeasuringProtocol,
    Samples,
    Series,
)
from edgecsi.device.samples import from_calls, to_calls
from edgecsi.device.state import State
from edgecsi.device.toolchain import prepare_fast_call, timer
from edgecsi.device.turns import in_turns
from edgecsi.errors import DeviceError
from edgecsi.progress import Progress

_MAX_TENSORS = 16  # as in calls.h
_START_SECONDS = 120.0


def cpu_name() -> str:
    """This machine's CPU in words, as :func:`edgecsi.device.state.cpu_name` gives them."""
    return states.cpu_name(states.read()) or cpu.machine()


class Local:
    """This machine, in this process."""

    spec = "local"

    def __init__(self) -> None:
        prepare_fast_call()
        self._loaded: dict[tuple[Path, str], Loaded] = {}

    def info(self) -> DeviceInfo:
        """This machine's CPU."""
        return DeviceInfo(self.spec, cpu_name(), cpu.machine(), cpu.features(), emulated=False)

    def run(self, bundle: Bundle, entry: str, x: Samples) -> Array | tuple[Array, ...]:
        """See :meth:`edgecsi.device.protocol.Device.run`."""
        described, loaded = bundle.entry(entry), self._load(bundle)
        inputs = to_calls(described, x)
        count = len(inputs[0])
        outputs: list[Array] = [
            np.empty((count, *tensor.shape), tensor.dtype) for tensor in described.outputs
        ]
        for i in range(count):
            y = loaded.run(*(array[i] for array in inputs), entry=entry)
            for target, value in zip(outputs, y if len(outputs) > 1 else (y,), strict=True):
                target[i] = value
        return from_calls(described, outputs)

    def time(
        self, bundle: Bundle, entry: str, x: Samples, repeats: int, *, flush_bytes: int = 0
    ) -> NDArray[np.float64]:
        """See :meth:`edgecsi.device.protocol.Device.time`."""
        described, loaded = bundle.entry(entry), self._load(bundle)
        inputs = to_calls(described, x)
        outputs = [np.empty((len(inputs[0]), *tensor.shape), tensor.dtype) for tensor in described.outputs]
        pointers = np.zeros((len(inputs[0]), _MAX_TENSORS), np.uintp)
        for t, array in enumerate([*inputs, *outputs]):
            pointers[:, t] = array.ctypes.data + np.arange(len(array), dtype=np.uintp) * array[0].nbytes
        flush = np.ones(max(1, flush_bytes), np.uint8)
        nanoseconds = np.zeros(repeats)
        code = _time_calls()(
            ctypes.cast(loaded.function(entry), ctypes.c_void_p),
            pointers.ctypes.data,
            len(pointers),
            repeats,
            flush.ctypes.data,
            flush_bytes,
            nanoseconds.ctypes.data,
        )
        if code:
            raise DeviceError(
                f"{bundle.library.name} failed in {entry} with code {code}",
                loaded.strerror(code),
                "run `edgecsi doctor`; if it finds nothing, this is a bug of edgecsi: please report it",
            )
        return nanoseconds

    def measure(
        self,
        bundle: Bundle,
        entry: str,
        x: Samples,
        protocol: MeasuringProtocol,
        progress: Progress | None = None,
    ) -> Series:
        """See :meth:`edgecsi.device.protocol.Device.measure`."""
        series = in_turns(
            lambda calls, flush: self.time(bundle, entry, x, calls, flush_bytes=flush), protocol, progress
        )
        nothing = _time_nothing(EMPTY_CALLS).astype(np.int64)
        return replace(
            series, nothing=Series([nothing], nothing[:0], settled=True, complete=True, threads=1.0)
        )

    def profile(
        self, bundle: Bundle, entry: str, x: Samples, passes: int, seconds: float
    ) -> NDArray[np.float64]:
        """See :meth:`edgecsi.device.protocol.Device.profile`."""
        loaded = self._load(bundle)
        inputs = [array[0] for array in to_calls(bundle.entry(entry), x)]
        end = time.monotonic() + seconds
        measured: list[list[float]] = []
        while len(measured) < passes and (time.monotonic() < end or len(measured) < 5):
            measured.append(loaded.profile(*inputs, entry=entry))
        return np.array(measured)

    def first_calls(self, bundle: Bundle, entry: str, x: Samples, count: int) -> list[FirstCall]:
        """Fresh Python processes, as a user starts them, with the golden input; see
        :meth:`edgecsi.device.protocol.Device.first_calls`."""
        found = []
        for _ in range(count):
            command = [sys.executable, "-m", "edgecsi.device.first_call", str(bundle.path), entry]
            try:
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    timeout=_START_SECONDS,
                    check=False,
                )
                found.append(FirstCall(**json.loads(done.stdout)))
            except (subprocess.TimeoutExpired, ValueError, TypeError) as error:
                late = isinstance(error, subprocess.TimeoutExpired)
                said = "it did not end in time" if late else done.stderr.strip()
                raise DeviceError(
                    f"{bundle.path} cannot be loaded and called in a fresh process",
                    said.splitlines()[-1] if said else "it ended without an answer",
                    "run it once with `edgecsi run` to see more",
                ) from error
        return found

    def count_instructions(self, bundle: Bundle, entry: str, x: Samples | None = None) -> int | None:
        """None: the CPU's own counters need rights that a user has not."""
        return None

    def state(self) -> State:
        """See :meth:`edgecsi.device.protocol.Device.state`."""
        return states.read()

    def run_program(
        self,
        program: Path,
        files: Sequence[Path] = (),
        *,
        library: Path | None = None,
        timeout: float = 120.0,
    ) -> str:
        """See :meth:`edgecsi.device.protocol.Device.run_program`."""
        environment = os.environ | ({} if library is None else {"LD_PRELOAD": str(library)})
        try:
            return subprocess.run(
                [program, *files], env=environment, capture_output=True, text=True, errors="replace", timeout=timeout,
                check=True,
            ).stdout  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise DeviceError(f"{program.name} failed", str(error), "run `edgecsi doctor`") from error

    def close(self) -> None:
        """Nothing is held."""

    def _load(self, bundle: Bundle) -> Loaded:
        key = (bundle.path, bundle.manifest.digest)
        if key not in self._loaded:
            self._loaded[key] = Loaded(bundle)
        return self._loaded[key]


@cache
def _time_calls() -> Any:
    function = ctypes.CDLL(str(timer())).edgecsi_time_calls
    pointer = ctypes.c_void_p
    function.argtypes = [pointer, pointer, ctypes.c_long, ctypes.c_long, pointer, ctypes.c_size_t, pointer]
    function.restype = ctypes.c_int
    return function


def _time_nothing(calls: int) -> NDArray[np.float64]:
    """Nanoseconds of calls that do nothing: of C's ``abs``, of 0."""
    nanoseconds, pointers, flush = np.zeros(calls), np.zeros(_MAX_TENSORS, np.uintp), np.zeros(1, np.uint8)
    nothing = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p)
    _time_calls()(nothing, pointers.ctypes.data, 1, calls, flush.ctypes.data, 0, nanoseconds.ctypes.data)
    return nanoseconds
