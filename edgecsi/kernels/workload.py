"""What makes two layers the same work, and two kernels the same code: the keys under which tuning keeps what it measured.

Neither depends on the values of weights, scales or slopes, which retraining changes and time does not depend on; what
zeros there are does count, by the share of blocks of every format that hold some weight.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Kernel, Knobs
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense, Half, Op, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import Target

_BLOCKS = ((1, 1), (4, 1), (8, 1), (16, 1), (4, 4), (8, 4), (16, 4))
_STEP = 0.02  # densities nearer than that are the same work
_IGNORED = {"name", "eps"}
_NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?|\binf\b|\bnan\b")


def describe(op: Op) -> dict[str, Any]:
    """The work of an operator in plain JSON values: operator, layouts, shapes, types, epilogue, zeros."""
    found: dict[str, Any] = {"op": type(op).__name__}
    for field in dataclasses.fields(op):
        # Records were kept before a dense layer had steps.
        unsaid = field.name == "steps" and isinstance(op, Dense) and not op.steps
        if field.name not in _IGNORED and not unsaid:
            found[field.name] = _plain(field.name, getattr(op, field.name))
    weight = getattr(op, "weight", None)
    if weight is not None and weight.ndim == 2:
        found["weight"]["blocks"] = _densities(getattr(op, "dense_weight", lambda: weight)())
    return found


def workload(op: Op) -> str:
    """The key of an operator's work: 16 hexadecimal digits of the SHA-256 of :func:`describe`."""
    text = json.dumps(describe(op), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code(kernel: Kernel, op: Op, target: Target, knobs: Knobs) -> str:
    """The key of the code that a kernel emits for an operator, numbers left out: 16 hexadecimal digits.

    Raises:
        ValueError: these knobs do not fit.
    """
    text = _NUMBER.sub("#", kernel.emit(op, target, knobs).script())
    sizes = [(array.size, str(array.dtype)) for array in kernel.constants(op, target, knobs)]
    return hashlib.sha256(f"{text}{sizes}".encode()).hexdigest()[:16]


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Layout):
        return _layout(value)
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, Quant):
        return "uint8"
    if isinstance(value, Half):
        return "float16"
    if isinstance(value, tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, Step):
        operand = _layout(value.operand) if value.operand is not None else None
        return [value.op, operand] if operand else value.op
    if name == "among":  # bytes read beside the layer's own: to two significant bits
        return (
            0 if value == 0 else (value >> max(value.bit_length() - 2, 0)) << max(value.bit_length() - 2, 0)
        )
    if name == "fine":
        return value > 1
    return value


def _layout(layout: Layout) -> str:
    shape = "x".join(map(str, layout.shape))
    parts = [shape, layout.dtype]
    if any(layout.halo):
        parts.append(f"halo {'/'.join(map(str, layout.halo))}")
    if layout.group > 1:
        parts.append(f"group {layout.group}")
    if layout.batch_stride is not None:
        parts.append(f"stride {layout.batch_stride}")
    if layout.peak:
        parts.append("peak")
    return " ".join(parts)


def _densities(weight: NDArray[Any]) -> list[float]:
    """Share of blocks with a weight that is not zero, for every block shape, rounded; empty where nothing is zero."""
    used = weight != 0
    if used.all():
        return []
    shares = []
    for rows, columns in _BLOCKS:
        padded = np.pad(used, ((0, -len(used) % rows), (0, -used.shape[1] % columns)))
        blocks = padded.reshape(len(padded) // rows, rows, padded.shape[1] // columns, columns)
        shares.append(round(round(float(blocks.any((1, 3)).mean()) / _STEP) * _STEP, 2))
    return shares
