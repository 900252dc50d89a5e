"""Walking along rows of any length with vectors, and reducing them to one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgecsi.kernels.base import Cost, Expr, Knobs
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Op
from edgecsi.target import Target


def refuses_rows(op: Op) -> str:
    """Why a kernel that works row by row, along the last axis, cannot compute an operator."""
    tensors = [op.x, op.y, *(s.operand for s in op.epilogue if s.operand is not None)]
    if op.x.dtype != "float32" or op.y.dtype not in ("float32", "float16"):
        return "the input must be float32, the output too or in half precision"
    if any(t.group != 1 or t.shape != op.y.shape for t in tensors):
        return "all tensors must have one shape and their channels apart"
    return "per-channel constants are not supported" if any(s.constants for s in op.epilogue) else ""


def row_shape(layout: Layout) -> tuple[int, int]:
    """Number of rows, and their length."""
    return int(np.prod(layout.shape[:-1], dtype=np.int64)), layout.shape[-1]


def row_start(layout: Layout, row: Expr) -> Expr:
    """Offset of a row's first element."""
    rows = int(np.prod(layout.shape[1:-1], dtype=np.int64))
    if len(layout.shape) == 4:
        _, _, height, _ = layout.shape
        return layout.at(row // rows, row % rows // height, row % height, 0)
    if layout.is_plain:
        return row * layout.shape[-1]
    return row // rows * layout.stride + row % rows * layout.shape[-1]


def row_knobs(op: Op, target: Target) -> Knobs:
    """Vectors as wide as the row allows, up to four at a time."""
    lanes = lanes_for(op.x.shape[-1], target.lanes_f32)
    return {"lanes": lanes, "unroll": max(1, min(4, op.x.shape[-1] // lanes))}


def row_cost(op: Op, target: Target, knobs: Knobs, *, operations: float, per_row: float) -> Cost:
    """Cost of `operations` vector instructions per vector and `per_row` cycles per row."""
    rows, extent = row_shape(op.x)
    vectors = -(-extent // knobs["lanes"])
    second = target.peak_gmacs_f32 * 1e9 / target.lanes_f32
    return Cost(seconds=rows * (vectors * operations + per_row) / second, bytes=0, macs=0)


def lanes_for(extent: int, lanes: int) -> int:
    """The widest vector of at most `lanes` that a row of `extent` elements holds."""
    while lanes > extent:
        lanes //= 2
    return lanes


def along(extent: int, lanes: int, unroll: int, body: Callable[[Expr, int, int], None]) -> None:
    """Call `body(offset, fresh, u)` for vectors that cover a row.

    The last vector overlaps its neighbour: only its last `fresh` lanes are new. `u` numbers the vectors of an
    iteration, 0 to `unroll` - 1, for independent sums.
    """
    from edgecsi.kernels import emit as e

    whole = extent // lanes
    with e.serial(whole // unroll) as i:
        for u in range(unroll):
            body((i * unroll + u) * lanes, lanes, u)
    for rest in range(whole % unroll):
        body((whole - whole % unroll + rest) * lanes, lanes, rest)
    if extent % lanes:
        body(extent - lanes, extent % lanes, whole % unroll)


def only_fresh(value: Expr, fresh: int, neutral: float) -> Expr:
    """`value` with all but its last `fresh` lanes replaced by `neutral`."""
    from tvm import tirx

    from edgecsi.kernels import emit as e

    lanes = e.lanes_of(value)
    if fresh == lanes:
        return value
    mask = [i >= lanes - fresh for i in range(lanes)]
    source = [i if new else lanes for i, new in enumerate(mask)]
    return tirx.Shuffle([value, e.splat(neutral, lanes)], source)


def across(value: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine all lanes of a vector into a scalar, half by half."""
    from tvm import tirx

    from edgecsi.kernels import emit as e

    lanes = e.lanes_of(value)
    while lanes > 1:
        value = e.let(value)
        lanes //= 2
        low, high = (tirx.Shuffle([value], list(range(k, k + lanes))) for k in (0, lanes))
        value = combine(low, high)
    return e.let(value)


def four_across(values: Sequence[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """:func:`across` of four vectors of at least four lanes at once, to a vector of four: lanes change places within
    128 bits first, as instructions do."""
    from edgecsi.kernels import emit as e

    def fold(a: Expr, b: Expr, order: Sequence[int]) -> Expr:
        """Lanes of both, within every four, combined with the others."""
        lanes = e.lanes_of(a)
        sides = [
            [four + i % 4 + (i // 4) * lanes for four in range(0, lanes, 4) for i in some]
            for some in (order[:4], order[4:])
        ]
        return e.let(combine(*(e.shuffle([a, b], side) for side in sides)))

    # lane by lane a0 b0 a1 b1 with a2 b2 a3 b3, then the first half of both with the second
    first, second = (fold(values[i], values[i + 1], (0, 4, 1, 5, 2, 6, 3, 7)) for i in (0, 2))
    total = fold(first, second, (0, 1, 4, 5, 2, 3, 6, 7))
    while (lanes := e.lanes_of(total)) > 4:
        total = e.let(combine(e.part(total, 0, lanes // 2), e.part(total, lanes // 2, lanes // 2)))
    return total


def tree(values: list[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine a list pairwise."""
    while len(values) > 1:
        pairs = [combine(a, b) for a, b in zip(values[::2], values[1::2], strict=False)]
        values = pairs + values[len(values) - len(values) % 2 :]
    return values[0]
