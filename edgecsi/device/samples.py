"""Many samples, as a user has them, and as an entry with a fixed batch takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.bundle import Entry, Tensor
from edgecsi.bundle.call import to_type
from edgecsi.device.protocol import Array, Samples
from edgecsi.errors import DataError


def some_call(inputs: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Inputs of a call that any network takes: normally distributed numbers; integers are 0 and 1. Always the same."""
    numbers = np.random.default_rng(0)
    return [
        np.asarray(
            numbers.standard_normal(t.shape, np.float32)
            if t.dtype == "float32"
            else numbers.integers(0, 2, t.shape, np.int32)
        )
        for t in inputs
    ]


def to_calls(entry: Entry, x: Samples) -> list[Array]:
    """Split samples into calls: per input, C-contiguous float32 ``[calls, *shape]``.

    Raises:
        DataError: the arrays do not fit the entry.
    """
    arrays = [x] if isinstance(x, np.ndarray) else list(x)
    shapes = [tensor.shape for tensor in entry.inputs]
    if len(arrays) != len(shapes):
        raise DataError(
            f"{len(arrays)} input(s) given",
            f"the entry takes {len(shapes)}: {shapes}",
            "give one array for each",
        )
    calls = []
    for given, tensor in zip(arrays, entry.inputs, strict=True):
        array = given if tensor.shape else np.atleast_1d(given)
        batch, *rest = tensor.shape or (1,)  # of scalars, one a call
        wanted = f"{tensor.dtype} [N, {', '.join(map(str, rest))}]" + (
            f", N a multiple of {batch}" if batch > 1 else ""
        )
        if array.dtype.kind not in "fiub":
            raise DataError(
                f"{tensor.name} has dtype {array.dtype}", "real numbers are needed", f"give {wanted}"
            )
        if (
            array.ndim != len(rest) + 1
            or list(array.shape[1:]) != rest
            or not len(array)
            or len(array) % batch
        ):
            raise DataError(
                f"{tensor.name} has shape {array.shape}", "it does not fit the entry", f"give {wanted}"
            )
        calls.append(to_type(array, tensor).reshape(-1, *tensor.shape))
    if len({len(array) for array in calls}) > 1:
        raise DataError(
            "the inputs hold different numbers of samples",
            str([len(array) for array in calls]),
            "give equally many",
        )
    return calls


def to_rows(calls: Sequence[Array]) -> Array:
    """The inputs of :func:`to_calls` side by side: ``[calls, elements of all]``, four bytes each, which may be those of
    integers."""
    flat = [array.reshape(len(array), -1).view(np.float32) for array in calls]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)


def from_calls(entry: Entry, outputs: Sequence[Array]) -> Array | tuple[Array, ...]:
    """The inverse for outputs ``[calls, *shape]``: ``[calls * shape[0], *shape[1:]]``, a tuple if several.

    A transport may hand out the bytes of integers as those of float32.
    """
    joined = tuple(
        array.view(tensor.dtype).reshape(-1, *tensor.shape[1:])
        for array, tensor in zip(outputs, entry.outputs, strict=True)
    )
    return joined[0] if len(joined) == 1 else joined


def from_rows(entry: Entry, rows: NDArray[np.float32]) -> Array | tuple[Array, ...]:
    """The same for outputs that lie side by side: ``[calls, elements of all]``, four bytes each."""
    ends = np.cumsum([tensor.size for tensor in entry.outputs])[:-1]
    parts = np.split(rows, ends, axis=1)
    return from_calls(entry, [np.ascontiguousarray(part) for part in parts])
