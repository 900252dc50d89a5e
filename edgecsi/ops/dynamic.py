"""Codes whose range is found while they are made, sample by sample: see `edgecsi.ops.operators`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = np.float32
TINY = F32(1e-36)  # a dynamic scale's divisor is at least this: 254 / 1e-36 still fits fp32
TINY16 = F32(1e-33)  # the same for int16 codes: 32767 / 1e-33 fits too
DYNAMIC_STEPS = 254.0
"""Between the lowest and the highest value of a dynamically quantised sample: one less than there are codes, so that
wherever zero lies, no value rounds to a code that does not exist."""


def int8_codes(x: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes of every sample ``[N, I]`` around the code of 0, and the size of a step, ``[N, 1]``."""
    low = np.minimum(x.min(1, keepdims=True, initial=0), F32(0))
    width = np.maximum(x.max(1, keepdims=True, initial=0), F32(0)) - low
    steps = F32(DYNAMIC_STEPS)
    inverse = np.where(width >= TINY, steps / np.maximum(width, TINY), F32(0)).astype(F32)
    finite = np.isfinite(width)
    zero = np.where(finite, np.floor(-low * inverse) + 1, 0)
    codes = np.where(finite, np.rint((x * inverse).astype(np.float64) + zero) - zero, 0).astype(np.int64)
    return codes, np.where(finite, width / steps, F32(np.nan)).astype(F32)


def int16_codes(x: NDArray[Any], steps: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes of every sample ``[N, …]``, and the size of a step, ``[N, 1, …]``: not-a-number if a sample is not finite."""
    axes = tuple(range(1, x.ndim))
    peak = np.abs(x.astype(F32)).max(axes, keepdims=True, initial=0)
    finite = np.isfinite(peak)
    inverse = np.where(finite & (peak >= TINY16), F32(steps) / np.maximum(peak, TINY16), F32(0)).astype(F32)
    with np.errstate(invalid="ignore"):
        codes = np.where(finite, np.rint(x * inverse), 0).astype(np.int64)
    return codes, np.where(finite, peak / F32(steps), F32(np.nan)).astype(F32)


def rescaled(
    acc: NDArray[Any], unit: NDArray[np.float32], scale: NDArray[np.float32] | None, bias: NDArray[Any] | None
) -> NDArray[np.float32]:
    """Exact sums ``[N, O, …]`` of dynamic codes as fp32; the size of a step is each sample's."""
    assert scale is not None
    channel = (1, -1, *[1] * (acc.ndim - 2))
    y: NDArray[np.float32] = acc.astype(F32) * (unit * scale.astype(F32).reshape(channel))
    return y if bias is None else y + bias.astype(F32).reshape(channel)
