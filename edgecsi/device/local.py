"""``local``: this CPU."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi import cpu
from edgecsi.bundle import Bundle, Loaded
from edgecsi.device.protocol import Array, DeviceInfo, Samples
from edgecsi.device.samples import from_calls, to_calls
from edgecsi.device.toolchain import timer
from edgecsi.errors import DeviceError

_MAX_TENSORS = 16  # as in calls.h


def cpu_name() -> str:
    """This machine's CPU in words, for example ``AMD EPYC``; on a Raspberry Pi, the board's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return cpu.machine()
    fields = dict(re.findall(r"^(model name|Model)\s*:\s*(.*)$", text, re.MULTILINE))
    return str(fields.get("model name") or fields.get("Model") or cpu.machine())


class Local:
    """This machine, in this process."""

    spec = "local"

    def __init__(self) -> None:
        self._loaded: dict[tuple[Path, str], Loaded] = {}

    def info(self) -> DeviceInfo:
        """This machine's CPU."""
        return DeviceInfo(self.spec, cpu_name(), cpu.machine(), cpu.features(), emulated=False)

    def run(self, bundle: Bundle, entry: str, x: Samples) -> Array | tuple[Array, ...]:
        """See :meth:`edgecsi.device.protocol.Device.run`."""
        described, loaded = bundle.entry(entry), self._load(bundle)
        inputs = to_calls(described, x)
        count = len(inputs[0])
        outputs: list[Array] = [np.empty((count, *tensor.shape), np.float32) for tensor in described.outputs]
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
        outputs = [np.empty((len(inputs[0]), *tensor.shape), np.float32) for tensor in described.outputs]
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
