"""Calling one entry of a loaded library: arrays checked and converted, addresses passed over the C face."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgecsi.bundle import fast_call
from edgecsi.bundle.manifest import Entry, Tensor
from edgecsi.bundle.shared_library import SharedLibrary
from edgecsi.errors import DataError

Array = NDArray[np.float32]
Run = Callable[[tuple[ArrayLike, ...], "Array | None"], Any]

F32 = np.dtype(np.float32)

# `x.ctypes.data` takes longer than a small network. C programs find an array's address right behind the header of
# the object (PyArray_DATA: it is compiled into every extension of numpy, so it stays there), and so does
# `short_way`.
_MEMORY = (ctypes.c_size_t * (sys.maxsize // 16)).from_address(0)
_BEHIND_HEADER = object.__basicsize__ // 8


class Call:
    """One entry: its C functions with their argument types set once.

    Args:
        library: as loaded. prefix: of its functions. name: of the entry.
        fail: called with the name and a code that is not 0, to raise.
    """

    def __init__(
        self, library: SharedLibrary, prefix: str, name: str, entry: Entry, fail: Callable[[str, int], None]
    ) -> None:
        self.name, self.entry, self.fail = name, entry, fail
        symbol, pointer, code = f"{prefix}_{name}", ctypes.c_void_p, ctypes.c_int
        pointers = [pointer] * (len(entry.inputs) + len(entry.outputs))
        self.function = library.function(symbol, code, *pointers)
        self.with_workspace = library.function(f"{symbol}_ws", code, *pointers, pointer)
        self.profiler = library.function(f"{symbol}_profile", code, *pointers, pointer, pointer)
        self.workspace = Workspace(entry.workspace)

    def failed(self, code: int) -> None:
        """Raise what a code that is not 0 means."""
        self.fail(self.name, code)

    def general(self, inputs: tuple[ArrayLike, ...], out: Array | None) -> Any:
        arrays = self.convert(inputs)
        outputs = [np.empty(tensor.shape, tensor.dtype) for tensor in self.entry.outputs]
        if out is not None:
            outputs = [self.check_out(out, arrays)]
        self.invoke(self.function, [*arrays, *outputs])
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def profile(self, inputs: tuple[ArrayLike, ...]) -> list[float]:
        outputs = [np.empty(tensor.shape, tensor.dtype) for tensor in self.entry.outputs]
        workspace = _aligned(self.entry.workspace)
        nanoseconds = np.zeros(max(1, len(self.entry.layers)))
        self.invoke(self.profiler, [*self.convert(inputs), *outputs, workspace, nanoseconds])
        return [float(value) for value in nanoseconds[: len(self.entry.layers)]]

    def invoke(self, function: Callable[..., int], arrays: list[NDArray[Any]]) -> None:
        if code := function(*(array.ctypes.data for array in arrays)):
            self.fail(self.name, code)

    def convert(self, inputs: tuple[ArrayLike, ...]) -> list[Array]:
        if len(inputs) != len(self.entry.inputs):
            raise DataError(
                f"{self.name} takes {len(self.entry.inputs)} input(s), {len(inputs)} given",
                f"they are {', '.join(describe(tensor) for tensor in self.entry.inputs)}",
                "give one array for each",
            )
        return [_to_array(x, tensor) for x, tensor in zip(inputs, self.entry.inputs, strict=True)]

    def check_out(self, out: Array, inputs: list[Array]) -> Array:
        if len(self.entry.outputs) != 1:
            raise DataError(
                f"{self.name} has {len(self.entry.outputs)} outputs", "out= is for one", "leave out= away"
            )
        tensor = self.entry.outputs[0]
        if (
            type(out) is not np.ndarray
            or out.dtype != np.dtype(tensor.dtype)
            or out.shape != tensor.shape
            or not out.flags.carray
        ):
            raise DataError(
                f"out= cannot take the output {tensor.name}",
                f"it must be a writable, C-contiguous array, {describe(tensor)}",
                f"use out=np.empty({tensor.shape}, np.{tensor.dtype})",
            )
        if any(np.may_share_memory(out, x) for x in inputs):
            raise DataError(
                "out= overlaps an input",
                "the library may read an input after writing output",
                "use two arrays",
            )
        return out


def short_way(call: Call) -> Run:
    """``call.general``, with a short way for arrays that can be passed as they are: compiled where there is a compiler
    (:mod:`edgecsi.bundle.fast_call`), else in Python."""
    compiled = fast_call.module()
    if compiled is not None:
        entry = call.entry
        tensors = tuple((np.dtype(t.dtype).num, tuple(t.shape)) for t in (*entry.inputs, *entry.outputs))
        counts = len(entry.inputs), len(entry.outputs)
        bound: Run | None = compiled.bind(call, call.function.address, *counts, tensors)
        if bound is not None:
            return bound
    return _short_way_in_python(call)


def _short_way_in_python(call: Call) -> Run:
    """For one array of float32 that can be passed as it is.

    What it costs decides how fast small networks are in Python, so every name is a local one, and there is
    nothing between the checks and the C call. Whatever does not fit goes the long way, which converts it or
    says what is wrong.
    """
    general = call.general
    tensors = (*call.entry.inputs, *call.entry.outputs)
    plain = len(call.entry.inputs) == len(call.entry.outputs) == 1 and {t.dtype for t in tensors} == {
        "float32"
    }
    if not plain or not _addresses_are_readable():
        return general
    function, fail, name = call.function, call.fail, call.name
    first, last = call.entry.inputs[0], call.entry.outputs[0]
    in_shape, in_bytes, out_shape, out_bytes = first.shape, 4 * first.size, last.shape, 4 * last.size
    ndarray, empty, f32, memory, place = np.ndarray, np.empty, F32, _MEMORY, _BEHIND_HEADER

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
    probe = np.empty(1, F32)
    return bool(_MEMORY[(id(probe) >> 3) + _BEHIND_HEADER] == probe.ctypes.data)


class Workspace(threading.local):
    """A thread's own workspace for one entry, kept: batches need too much for the stack, and fresh memory is
    slow."""

    def __init__(self, size: int) -> None:
        self.held = _aligned(size)
        self.address: int = self.held.ctypes.data


def _aligned(size: int) -> NDArray[np.uint8]:
    """``size`` bytes at an address that 64 divides; at least one, so that there is an address."""
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + max(size, 1)]


def _to_real(x: ArrayLike, tensor: Tensor) -> NDArray[Any]:
    try:
        array = np.asarray(x)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"the input {tensor.name} is no array", str(error), f"give {describe(tensor)}"
        ) from None
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"the input {tensor.name} has dtype {array.dtype}",
            "real numbers are needed",
            f"give {describe(tensor)}",
        )
    return array


def to_samples(x: ArrayLike, tensor: Tensor) -> Array:
    array = _to_real(x, tensor)
    at_once, *shape = tensor.shape
    if array.ndim != len(tensor.shape) or list(array.shape[1:]) != shape or len(array) % at_once:
        wanted = f"{tensor.dtype} [N, {', '.join(map(str, shape))}]" + (
            f", N a multiple of {at_once}" if at_once > 1 else ""
        )
        raise DataError(
            f"the input {tensor.name} has shape {array.shape}", "it holds no samples of it", f"give {wanted}"
        )
    return to_type(array, tensor)


def _to_array(x: ArrayLike, tensor: Tensor) -> Array:
    array = _to_real(x, tensor)
    if array.shape != tensor.shape:
        raise DataError(
            f"the input {tensor.name} has shape {array.shape}",
            f"the library was built for {tensor.shape}",
            "pass one sample at a time, batch axis first, or many to run_many",
        )
    return to_type(array, tensor)


def to_type(array: NDArray[Any], tensor: Tensor) -> Array:
    """Real numbers as the library takes them: of its type, aligned and contiguous.

    Raises:
        DataError: they are to be integers, and are none, or too large.
    """
    if tensor.dtype == "int32" and not np.can_cast(array.dtype, np.int32):
        with np.errstate(invalid="ignore"):
            whole = array.astype(np.int32)
        if not np.array_equal(whole, array):
            raise DataError(
                f"the input {tensor.name} holds other than integers of 32 bits",
                f"it is {array.dtype}, and rounding it would answer something else",
                f"give {describe(tensor)}",
            )
        array = whole
    # require() also aligns and gives native byte order, and copies only if it must.
    return np.require(array, tensor.dtype, ["C", "A"])


def describe(tensor: Tensor) -> str:
    return f"{tensor.name}: {tensor.dtype} {tensor.shape}"
