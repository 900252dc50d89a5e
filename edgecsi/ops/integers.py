"""What is computed in integers: which convolutions, and which sums are held."""

from __future__ import annotations

import numpy as np

from edgecsi.ops.operators import Conv2d, Dense

EXACT = 1 << 24
"""Integers below are numbers of fp32: it adds them without rounding."""


def refuses_integers(groups: int, stride: tuple[int, ...], columns: int) -> str:
    """Why no integer kernel takes a convolution, whatever the CPU; empty if they may. fp32 kernels compute it then, as
    long as its sums stay below `EXACT`.

    Args:
        columns: of the output.
    """
    if groups != 1 or any(step != 1 for step in stride):
        return "it has no strides and no grouped convolutions"
    return "rows of fewer than 4 pixels" if columns < 4 else ""


def sums_fit(op: Conv2d | Dense) -> bool:
    """Whether no input can make a sum of int8 products, bias included, that int32 does not hold.

    Sums may wrap on their way; only the last value counts.
    """
    rows = op.weight.astype(np.int64).reshape(len(op.weight), -1)
    above, below = np.maximum(rows, 0).sum(1), np.maximum(-rows, 0).sum(1)
    if op.steps:
        return int((above + below).max(initial=0)) * op.steps < 2**31
    # Codes reach 255 - zero point above it and zero point below; in dynamic ones that is anywhere.
    zero = None if op.x_quant is None else op.x_quant.zero_point
    if zero is None:
        most = 255 * np.maximum(above, below)
    else:
        most = np.maximum((255 - zero) * above + zero * below, zero * above + (255 - zero) * below)
    if op.fine > 1:
        most *= op.fine + 1
    if zero is not None and op.bias is not None:
        most += np.abs(op.bias.astype(np.int64)).reshape(len(rows), -1).max(1)
    return int(most.max(initial=0)) < 2**31
