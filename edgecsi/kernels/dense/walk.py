"""Where the elements of a sample lie: places, runs of neighbours, and loops over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Expr
from edgecsi.ops.layout import Layout, vector_widths


def run_lanes(y: Layout, operands: Sequence[Layout], lanes: int) -> int:
    """The widest vector of at most `lanes` outputs that lie side by side in the output and all operands."""
    if len(y.shape) < 3:
        return lanes
    if any(layout.group > 1 for layout in (y, *operands)):
        return 1
    row = y.shape[3] if len(y.shape) == 4 else int(np.prod(y.shape[2:]))
    while row % lanes:
        lanes //= 2
    return lanes


def positions(layout: Layout, columns: int) -> NDArray[np.int64] | None:
    """Where every `columns` consecutive inputs start in the memory of a sample; None if they are apart
    somewhere.
    """
    total = int(np.prod(layout.shape[1:], dtype=np.int64))
    if total % columns:
        return None
    if len(layout.shape) != 4:
        return np.arange(0, total, columns)
    one = Layout((1, *layout.shape[1:]), layout.dtype, layout.halo, layout.group)
    place = one._index().reshape(-1, columns)
    if (np.diff(place, axis=1) != 1).any():
        return None
    result: NDArray[np.int64] = place[:, 0]
    return result


def each_run(
    layout: Layout, lanes: int, body: Callable[[Expr, Expr, int], None], by_rows: bool = False
) -> None:
    """Emit loops over all elements of one sample: `body` gets the first element, its offset in memory, and
    the count.

    Args:
        by_rows: no run crosses the end of a row (of the last axis), even where rows follow each other.
    """
    from edgecsi.kernels import emit as e

    total = int(np.prod(layout.shape[1:], dtype=np.int64))
    whole_rows = len(layout.shape) < 3 or not by_rows
    if (len(layout.shape) != 4 or (not any(layout.halo) and layout.group == 1)) and whole_rows:
        whole = total // lanes
        if whole:
            with e.serial(whole) as k:
                body(k * lanes, k * lanes, lanes)
        for at, width in vector_widths(total - whole * lanes, lanes):
            body(whole * lanes + at, whole * lanes + at, width)
        return
    if len(layout.shape) != 4:
        rows = int(np.prod(layout.shape[1:-1]))
        layout = Layout(
            (layout.shape[0], 1, rows, layout.shape[-1]), layout.dtype, batch_stride=layout.stride
        )
    _, channels, height, width = layout.shape
    if layout.group > 1:
        for c in range(channels):
            with e.serial(height) as h, e.serial(width) as w:
                body((c * height + h) * width + w, layout.at(0, c, h, w), 1)
        return
    with e.serial(channels) as c, e.serial(height) as h:
        for at, count in vector_widths(width, lanes):
            body((c * height + h) * width + at, layout.at(0, c, h, at), count)
