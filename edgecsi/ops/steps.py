"""The elementwise steps that may follow an operator, with their numpy meaning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.ops.layout import Layout

F32 = np.float32


@dataclass(frozen=True)
class Step:
    """One elementwise step of an epilogue.

    op and its parameters:
        ``leaky_relu`` (slope), ``relu``, ``relu6``, ``sigmoid``, ``tanh``, ``gelu`` (exact, erf), ``silu``, ``elu``
        (alpha), ``softplus``, ``exp``, ``sqrt``, ``rsqrt``, ``abs``, ``neg``, ``clip`` (low, high), ``affine``
        (scale, shift: x*scale+shift),
        ``hard_sigmoid`` (relu6(x+3)/6), ``prelu`` (a constant, one slope per channel),
        ``scale_channels`` and ``shift_channels`` (a constant, [C]), ``add``/``mul``/``sub``/``rsub``/``max``/``min``
        with another tensor (`operand`) of the output's shape, or of shape (N, C, 1, 1) or (N, 1, H, W) (a gate).
    """

    op: str
    params: tuple[float, ...] = ()
    operand: Layout | None = None
    constants: tuple[NDArray[np.float32], ...] = ()


Epilogue = tuple[Step, ...]


CURVES = frozenset({"sigmoid", "tanh", "gelu", "silu", "elu", "softplus", "exp"})
"""Steps that take many instructions an element, where others take one or two."""


def curves(steps: Epilogue) -> int:
    """How many of the steps are such."""
    return sum(step.op in CURVES for step in steps)


def apply_step(step: Step, x: NDArray[np.float32], operand: NDArray[np.float32] | None = None) -> Any:
    """The numpy meaning of one epilogue step, in fp32: an array of the shape of `x`."""
    p = [F32(v) for v in step.params]
    channel = (1, -1, *[1] * (x.ndim - 2))
    match step.op:
        case "leaky_relu":
            return np.where(x > 0, x, x * p[0])
        case "relu":
            return np.maximum(x, F32(0))
        case "relu6":
            return np.clip(x, F32(0), F32(6))
        case "sigmoid":
            return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(F32)
        case "tanh":
            return np.tanh(x)
        case "gelu":
            erf = np.vectorize(math.erf)(x.astype(np.float64) / math.sqrt(2)) if x.size else x
            return (0.5 * x * (1 + erf)).astype(F32)
        case "silu":
            return (x / (1 + np.exp(-x.astype(np.float64)))).astype(F32)
        case "elu":
            return np.where(x > 0, x, p[0] * np.expm1(np.minimum(x, 0)))
        case "softplus":
            return np.logaddexp(x.astype(np.float64), 0).astype(F32)
        case "exp":
            return np.exp(x)
        case "sqrt":
            return np.sqrt(x)
        case "rsqrt":
            return F32(1) / np.sqrt(x)
        case "abs":
            return np.abs(x)
        case "neg":
            return -x
        case "clip":
            return np.clip(x, p[0], p[1])
        case "affine":
            return x * p[0] + p[1]
        case "hard_sigmoid":
            return np.clip(x + F32(3), F32(0), F32(6)) * F32(1 / 6)
        case "prelu":
            return np.where(x > 0, x, x * step.constants[0].reshape(channel))
        case "scale_channels":
            return x * step.constants[0].reshape(channel)
        case "shift_channels":
            return x + step.constants[0].reshape(channel)
    assert operand is not None, step.op
    match step.op:
        case "add":
            return x + operand
        case "sub":
            return x - operand
        case "rsub":
            return operand - x
        case "mul":
            return x * operand
        case "max":
            return np.maximum(x, operand)
        case "min":
            return np.minimum(x, operand)
    raise ValueError(f"no epilogue step {step.op!r}")
