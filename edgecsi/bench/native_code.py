"""Small C programs of our own that measure what Python cannot, built for this CPU when first needed."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from edgecsi import cpu
from edgecsi.bench.measure import Nanoseconds
from edgecsi.bundle import Loaded
from edgecsi.codegen.zig import zig_cc
from edgecsi.errors import DeviceError, ToolchainError


@cache
def built(source: str, *options: str) -> Path:
    """Compiles ``edgecsi/bench/native/<source>`` with ``-O3`` for this exact CPU; kept in the user's cache.

    Raises:
        ToolchainError: the compiler is missing or failed.
    """
    text = (resources.files("edgecsi.bench") / "native" / source).read_bytes()
    key = hashlib.sha256(b"\0".join([text, cpu.llvm_name().encode(), *(o.encode() for o in options)])).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgecsi" / "bench"
    binary = folder / f"{Path(source).stem}-{key[:16]}"
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            Path(scratch, source).write_bytes(text)
            zig_cc(["-O3", "-mcpu=native", *options, source, "-o", binary.name], cwd=Path(scratch))
            os.replace(Path(scratch, binary.name), binary)
    return binary


def program_output(source: str, timeout: float = 120.0) -> str:
    """Builds and runs one of the programs; what it printed.

    Raises:
        ToolchainError: it cannot be built, or did not run to its end.
    """
    binary = built(source)
    try:
        return subprocess.run([binary], capture_output=True, text=True, timeout=timeout, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolchainError(
            f"the measuring program {source} failed", str(error), "run `edgecsi doctor`"
        ) from error


def time_c_calls(loaded: Loaded, entry: str, count: int) -> Nanoseconds:
    """Times an entry's C function from C: the latency without Python, in ns.

    Args:
        loaded: the bundle.
        entry: one with at most four inputs and outputs; its inputs are zeros.
        count: calls.

    Raises:
        ToolchainError: the timer cannot be built.
        DeviceError: the library returned an error code.
    """
    tensors = [*loaded.entries[entry].inputs, *loaded.entries[entry].outputs]
    if len(tensors) > 4:
        raise ToolchainError(
            f"{entry} has {len(tensors)} inputs and outputs", "the C timer passes at most four", "see its Python time"
        )
    timer = ctypes.CDLL(str(built("calls.c", "-shared", "-fPIC")))
    buffers = [np.zeros(tensor.shape, np.float32) for tensor in tensors]
    pointers = (ctypes.c_void_p * 4)(*(buffer.ctypes.data for buffer in buffers))
    samples = np.zeros(count, np.int64)
    timer.edgecsi_time_calls.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    function = ctypes.cast(loaded.function(entry), ctypes.c_void_p)  # type: ignore[arg-type]
    code = timer.edgecsi_time_calls(function, pointers, count, samples.ctypes.data)
    if code:
        raise DeviceError(
            f"{loaded.manifest.library} failed in {entry} with code {code}", "the C call returned an error", "run `edgecsi doctor`"
        )
    return samples
