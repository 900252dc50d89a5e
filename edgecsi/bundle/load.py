"""Running a bundle's library in this process: numpy in, numpy out, over the C face. No torch, no TVM."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgecsi import cpu
from edgecsi.bundle import signature
from edgecsi.bundle.manifest import Entry, Manifest, Tensor
from edgecsi.bundle.read import Bundle, read_bundle
from edgecsi.errors import BundleError, DataError, DeviceError, UsageError

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Array = NDArray[np.float32]
Run = Callable[[tuple[ArrayLike, ...], "Array | None"], Any]

_F32 = np.dtype(np.float32)
_MAX_THREADS = 256

# `x.ctypes.data` takes longer than a small network. C programs find an array's address right behind the header of
# the object (PyArray_DATA: it is compiled into every extension of numpy, so it stays there), and so does `_runner`.
_MEMORY = (ctypes.c_size_t * (sys.maxsize // 16)).from_address(0)
_BEHIND_HEADER = object.__basicsize__ // 8


def load(path: str | Path, *, allowed_signers: str | Path | None = None) -> Loaded:
    """Verify a bundle and load its library.

    Args:
        path: the bundle's folder.
        allowed_signers: who may have signed it, as ``ssh-keygen`` reads it; by default nobody has to.

    Raises:
        BundleError: it is no bundle, any file of it was changed, or its signature does not count.
        DeviceError: this machine cannot run it: another architecture, or a CPU without a feature it needs.
    """
    bundle = read_bundle(path)
    if allowed_signers is not None:
        signature.verify(bundle, allowed_signers)
    return Loaded(bundle)


def check_runs_here(bundle: Bundle) -> None:
    """Raise DeviceError, naming what is missing, unless this CPU can run the bundle's library."""
    target = bundle.manifest.target
    if target.arch != cpu.machine():
        raise DeviceError(
            f"{bundle.path} cannot run on this machine",
            f"it is built for {target.arch} ({target.id}), this machine is {cpu.machine()}",
            "run it with --device emulate, or build with --target host",
        )
    if missing := [feature for feature in target.features if feature not in cpu.features()]:
        raise DeviceError(
            f"{bundle.path} cannot run on this CPU",
            f"it is built for {target.id}, which needs {', '.join(missing)}; this CPU lacks them",
            "build with --target host, or for an older target (edgecsi targets)",
        )


class Loaded:
    """A bundle's library, loaded. May be called from many threads at once.

    Args:
        bundle: a verified bundle.

    Raises:
        DeviceError: this machine cannot run it.
        BundleError: the dynamic linker refused it.
    """

    def __init__(self, bundle: Bundle) -> None:
        check_runs_here(bundle)
        self.bundle = bundle
        try:
            library = ctypes.CDLL(_distinct_name(bundle.library))
        except OSError as error:
            raise BundleError(
                f"{bundle.library} cannot be loaded",
                str(error),
                f"it needs glibc {bundle.manifest.target.glibc} or newer: see `ldd --version`",
            ) from None
        self._strerror = library[f"{bundle.manifest.cname}_strerror"]
        self._strerror.argtypes, self._strerror.restype = [ctypes.c_int], ctypes.c_char_p
        self._calls = {name: _Call(self, library, name, entry) for name, entry in self.entries.items()}
        self._runs = {name: _runner(call) for name, call in self._calls.items()}

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The functions of the library, with the names and shapes of their inputs and outputs."""
        return self.bundle.manifest.entries

    def run(self, *inputs: ArrayLike, entry: str = "full", out: Array | None = None) -> Any:
        """Call one entry once.

        Args:
            inputs: one array per input, of exactly the entry's shapes. C-contiguous float32 is passed as it
                is; other real numbers are converted.
            entry: ``encoder``, ``decoder``, ``full``, or whatever ``entries`` lists.
            out: where to write the (only) output: writable, contiguous float32 of its shape, apart from the
                inputs.

        Returns:
            The output, float32 of its shape; a tuple of them if the entry has several.

        Raises:
            DataError: an input or ``out`` has another shape or type.
            BundleError: the bundle has no such entry.
            DeviceError: the library returned an error code.
        """
        try:
            run = self._runs[entry]
        except KeyError:
            self.bundle.entry(entry)  # raises, listing the entries there are
            raise
        return run(inputs, out)

    def run_many(self, x: ArrayLike, entry: str = "full", threads: int = 1) -> Array:
        """Call one entry for many samples: fast where the bundle was built with ``--batch``.

        Each thread takes an equal share of the samples, and for these the largest batch entries
        (``<entry>_b64``, ...) that fit. Every sample gets the answer that :meth:`run` gives it: quantised
        networks bit for bit, others but for the order of fp32 sums.

        Args:
            x: ``[N, *shape]``, ``shape`` being that of the entry's input without its first axis; any N, but a
                multiple of the first axis if that is not 1. Other types than float32 are converted.
            entry: as for :meth:`run`; it has one input and one output.
            threads: how many threads share the work, the calling one among them, 1 to 256. The library
                computes without holding Python's lock.

        Returns:
            float32 ``[N, *shape]`` of the output.

        Raises:
            DataError: ``x`` does not fit, or the entry has several inputs or outputs.
            UsageError: an impossible number of threads.
            BundleError, DeviceError: as :meth:`run` does.
        """
        first = self._single(entry)
        if not isinstance(threads, int) or not 1 <= threads <= _MAX_THREADS:
            raise UsageError(
                f"run_many cannot use {threads!r} threads",
                f"it takes 1 to {_MAX_THREADS}",
                "give as many as the machine has cores to spare",
            )
        samples = _to_samples(x, first.inputs[0])
        outputs: Array = np.empty((len(samples), *first.outputs[0].shape[1:]), _F32)
        at_once = first.inputs[0].shape[0]
        calls = [(size, self._calls[name]) for size, name in self.batch_entries(entry).items()]
        source, target = samples.ctypes.data, outputs.ctypes.data
        in_bytes, out_bytes = (4 * t.size // at_once for t in (first.inputs[0], first.outputs[0]))

        def work(begin: int, end: int) -> None:
            for size, call in calls:
                workspace = call.workspace.address
                while end - begin >= size:
                    places = source + begin * in_bytes, target + begin * out_bytes
                    if code := call.with_workspace(*places, workspace):
                        self._fail(call.name, code)
                    begin += size

        # Shares of whole calls, as equal as can be.
        units = len(samples) // at_once
        shares = min(threads, max(units, 1))
        parts = list(pairwise(units * share // shares * at_once for share in range(shares + 1)))
        others = [_pool(shares - 1).submit(work, *part) for part in parts[1:]]
        work(*parts[0])
        for other in others:
            other.result()
        return outputs

    def batch_entries(self, entry: str) -> dict[int, str]:
        """The functions that compute an entry, by the samples each takes at once, largest first: for example
        ``{64: "decoder_b64", 8: "decoder_b8", 1: "decoder"}``.

        Raises:
            BundleError: the bundle has no such entry.
        """
        sizes = {self.bundle.entry(entry).inputs[0].shape[0]: entry}
        for name, described in self.entries.items():
            source, mark, batch = name.rpartition("_b")
            if mark and source == entry and batch.isdigit():
                sizes[described.inputs[0].shape[0]] = name
        return dict(sorted(sizes.items(), reverse=True))

    def strerror(self, code: int) -> str:
        """The library's own words for a code it returned."""
        text: bytes | None = self._strerror(code)
        return text.decode("utf-8", "replace") if text else "unknown code"

    def function(self, entry: str) -> Any:
        """The C function of an entry itself (a ctypes function taking addresses), for measuring it alone."""
        self.bundle.entry(entry)
        return self._calls[entry].function

    def profile(self, *inputs: ArrayLike, entry: str = "full") -> list[float]:
        """Call one entry once and time its layers; measuring slows the call itself down.

        Args:
            inputs: as for :meth:`run`.
            entry: as for :meth:`run`.

        Returns:
            Nanoseconds per layer, in the order of ``entries[entry].layers``.

        Raises:
            DataError, BundleError, DeviceError: as :meth:`run` does.
        """
        self.bundle.entry(entry)
        return self._calls[entry].profile(inputs)

    def _single(self, entry: str) -> Entry:
        """The entry, which must map one tensor to one with equally many samples."""
        described = self.bundle.entry(entry)
        inputs, outputs = described.inputs, described.outputs
        if len(inputs) > 1 or len(outputs) > 1 or inputs[0].shape[:1] != outputs[0].shape[:1]:
            raise DataError(
                f"run_many cannot be used for {entry}",
                f"it maps {', '.join(map(_describe, inputs))} to {', '.join(map(_describe, outputs))}, "
                "not one array of samples to another",
                "use run for it",
            )
        return described

    def _fail(self, entry: str, code: int) -> None:
        raise DeviceError(
            f"{self.bundle.library.name} failed in {entry} with code {code}",
            self.strerror(code),
            "run `edgecsi doctor`; if it finds nothing, this is a bug of edgecsi: please report it",
        )


class _Call:
    """One entry: its C functions with their argument types set once."""

    def __init__(self, loaded: Loaded, library: ctypes.CDLL, name: str, entry: Entry) -> None:
        self.loaded, self.name, self.entry = loaded, name, entry
        pointers = [ctypes.c_void_p] * (len(entry.inputs) + len(entry.outputs))
        symbol = f"{loaded.manifest.cname}_{name}"
        self.function = library[symbol]
        self.function.argtypes, self.function.restype = pointers, ctypes.c_int
        self.with_workspace = library[f"{symbol}_ws"]
        self.with_workspace.argtypes = [*pointers, ctypes.c_void_p]
        self.with_workspace.restype = ctypes.c_int
        self.profiler = library[f"{symbol}_profile"]
        self.profiler.argtypes = [*pointers, ctypes.c_void_p, ctypes.c_void_p]
        self.profiler.restype = ctypes.c_int
        self.workspace = _Workspace(entry.workspace)

    def general(self, inputs: tuple[ArrayLike, ...], out: Array | None) -> Any:
        arrays = self.convert(inputs)
        outputs = [np.empty(tensor.shape, _F32) for tensor in self.entry.outputs]
        if out is not None:
            outputs = [self.check_out(out, arrays)]
        self.invoke(self.function, [*arrays, *outputs])
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def profile(self, inputs: tuple[ArrayLike, ...]) -> list[float]:
        outputs = [np.empty(tensor.shape, _F32) for tensor in self.entry.outputs]
        workspace = _aligned(self.entry.workspace)
        nanoseconds = np.zeros(max(1, len(self.entry.layers)))
        self.invoke(self.profiler, [*self.convert(inputs), *outputs, workspace, nanoseconds])
        return [float(value) for value in nanoseconds[: len(self.entry.layers)]]

    def invoke(self, function: Callable[..., int], arrays: list[NDArray[Any]]) -> None:
        if code := function(*(array.ctypes.data for array in arrays)):
            self.loaded._fail(self.name, code)

    def convert(self, inputs: tuple[ArrayLike, ...]) -> list[Array]:
        if len(inputs) != len(self.entry.inputs):
            raise DataError(
                f"{self.name} takes {len(self.entry.inputs)} input(s), {len(inputs)} given",
                f"they are {', '.join(_describe(tensor) for tensor in self.entry.inputs)}",
                "give one array for each",
            )
        return [_to_float32(x, tensor) for x, tensor in zip(inputs, self.entry.inputs, strict=True)]

    def check_out(self, out: Array, inputs: list[Array]) -> Array:
        if len(self.entry.outputs) != 1:
            raise DataError(
                f"{self.name} has {len(self.entry.outputs)} outputs", "out= is for one", "leave out= away"
            )
        tensor = self.entry.outputs[0]
        if (
            type(out) is not np.ndarray
            or out.dtype != _F32
            or out.shape != tensor.shape
            or not out.flags.carray
        ):
            raise DataError(
                f"out= cannot take the output {tensor.name}",
                f"it must be a writable, C-contiguous array, {_describe(tensor)}",
                f"use out=np.empty({tensor.shape}, np.float32)",
            )
        if any(np.may_share_memory(out, x) for x in inputs):
            raise DataError(
                "out= overlaps an input",
                "the library may read an input after writing output",
                "use two arrays",
            )
        return out


def _runner(call: _Call) -> Run:
    """``call.general``, with a short way for the common case: one array that can be passed as it is.

    What it costs decides how fast small networks are in Python, so every name is a local one, and there is
    nothing between the checks and the C call. Whatever does not fit goes the long way, which converts it or
    says what is wrong.
    """
    general = call.general
    if len(call.entry.inputs) != 1 or len(call.entry.outputs) != 1 or not _addresses_are_readable():
        return general
    function, fail, name = call.function, call.loaded._fail, call.name
    first, last = call.entry.inputs[0], call.entry.outputs[0]
    in_shape, in_bytes, out_shape, out_bytes = first.shape, 4 * first.size, last.shape, 4 * last.size
    ndarray, empty, f32, memory, place = np.ndarray, np.empty, _F32, _MEMORY, _BEHIND_HEADER

    def run(inputs: tuple[ArrayLike, ...], out: Array | None) -> Any:
        if len(inputs) == 1:
            x = inputs[0]
            if (
                type(x) is ndarray
                and x.dtype is f32
                and x.shape == in_shape
                and (x.flags.carray or (x.flags.c_contiguous and x.flags.aligned))  # carray: and writable
            ):
                if out is None:
                    y = empty(out_shape, f32)
                    if code := function(memory[(id(x) >> 3) + place], memory[(id(y) >> 3) + place]):
                        fail(name, code)
                    return y
                if type(out) is ndarray and out.dtype is f32 and out.shape == out_shape and out.flags.carray:
                    source, target = memory[(id(x) >> 3) + place], memory[(id(out) >> 3) + place]
                    if source + in_bytes <= target or target + out_bytes <= source:
                        if code := function(source, target):
                            fail(name, code)
                        return out
        return general(inputs, out)

    return run


@cache
def _addresses_are_readable() -> bool:
    """Whether an array's address is where numpy on a 64-bit CPython has it."""
    if sys.implementation.name != "cpython" or sys.maxsize < 2**32:
        return False
    probe = np.empty(1, _F32)
    return bool(_MEMORY[(id(probe) >> 3) + _BEHIND_HEADER] == probe.ctypes.data)


class _Workspace(threading.local):
    """A thread's own workspace for one entry, kept: batches need too much for the stack, and fresh memory is
    slow."""

    def __init__(self, size: int) -> None:
        self.held = _aligned(size)
        self.address: int = self.held.ctypes.data


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work; starting them for every call would cost more than a small network."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads, "edgecsi")


# A forked process has no threads but the forking one: it needs pools of its own.
os.register_at_fork(after_in_child=_pool.cache_clear)


def _aligned(size: int) -> NDArray[np.uint8]:
    """``size`` bytes at an address that 64 divides; at least one, so that there is an address."""
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + max(size, 1)]


_loaded_files: dict[Path, list[tuple[int, int]]] = {}


def _distinct_name(path: Path) -> str:
    """A spelling of ``path`` that dlopen has not seen for another file.

    glibc takes an equal name for an equal library and hands out the old one, even if the file was replaced by
    a new build since. A few ``./`` more make it look at the file, which it knows again if it is the same.
    """
    status = path.stat()
    known = _loaded_files.setdefault(path, [])
    if (file := (status.st_dev, status.st_ino)) not in known:
        known.append(file)
    return f"{path.parent}/{'./' * known.index(file)}{path.name}"


def _to_real(x: ArrayLike, tensor: Tensor) -> NDArray[Any]:
    try:
        array = np.asarray(x)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"the input {tensor.name} is no array", str(error), f"give {_describe(tensor)}"
        ) from None
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"the input {tensor.name} has dtype {array.dtype}",
            "real numbers are needed",
            f"give {_describe(tensor)}",
        )
    return array


def _to_samples(x: ArrayLike, tensor: Tensor) -> Array:
    array = _to_real(x, tensor)
    at_once, *shape = tensor.shape
    if array.ndim != len(tensor.shape) or list(array.shape[1:]) != shape or len(array) % at_once:
        wanted = f"float32 [N, {', '.join(map(str, shape))}]" + (
            f", N a multiple of {at_once}" if at_once > 1 else ""
        )
        raise DataError(
            f"the input {tensor.name} has shape {array.shape}", "it holds no samples of it", f"give {wanted}"
        )
    return np.require(array, _F32, ["C", "A"])


def _to_float32(x: ArrayLike, tensor: Tensor) -> Array:
    array = _to_real(x, tensor)
    if array.shape != tensor.shape:
        raise DataError(
            f"the input {tensor.name} has shape {array.shape}",
            f"the library was built for {tensor.shape}",
            "pass one sample at a time, batch axis first, or many to run_many",
        )
    # require() also aligns and gives native byte order, and copies only if it must.
    return np.require(array, _F32, ["C", "A"])


def _describe(tensor: Tensor) -> str:
    return f"{tensor.name}: float32 {tensor.shape}"
