"""Max and average pooling, fp32: vectors along the width, windows cut at the border of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgecsi.kernels import reduce
from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.kernels.tiling import image_place, strided
from edgecsi.ops.operators import Pool2d
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class F32Pool2d(Kernel):
    """Any window, stride and padding; needs no halo. A window over a whole row is summed across lanes.

    Knobs:
        lanes: width of a vector.
    """

    op = Pool2d

    def refuses(self, op: Pool2d, target: Target) -> str:
        if op.x.dtype != "float32":
            return "the input must be float32"
        if op.x.group != 1 or op.y.group != 1 or len(op.x.shape) != 4 or len(op.y.shape) != 4:
            return "needs plain NCHW images"
        top, bottom, left, right = op.padding
        if max(top, bottom) >= op.window[0] or max(left, right) >= op.window[1]:
            return "a window may lie outside the image altogether"
        return ""

    def knobs(self, op: Pool2d, target: Target) -> Knobs:
        if whole_rows(op):
            return {"lanes": reduce.lanes_for(op.x.shape[3], target.lanes_f32)}
        first, last = inner_columns(op)
        return {"lanes": reduce.lanes_for(max(last - first, 1), target.lanes_f32)}

    def cost(self, op: Pool2d, target: Target, knobs: Knobs) -> Cost:
        n, channels, height, width = op.y.shape
        lanes = knobs["lanes"]
        first, last = inner_columns(op)
        if whole_rows(op):
            steps = n * channels * height * (op.window[0] * -(-op.x.shape[3] // lanes) * 2 + 40)
        else:
            vectors = max(-(-(last - first) // lanes), 0) * (1 if op.stride[1] == 1 else 3)
            border = width - max(last - first, 0)
            steps = n * channels * height * ((vectors + border) * op.window[0] * (op.window[1] + 1) + 12)
        return Cost(seconds=steps / (target.peak_gmacs_f32 * 1e9 / target.lanes_f32), bytes=0, macs=0)

    def constants(self, op: Pool2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        from edgecsi.kernels.emit import epilogue_constants

        return list(epilogue_constants(op))

    def emit(self, op: Pool2d, target: Target, knobs: Knobs) -> PrimFunc:
        from tvm import tirx
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        n, channels, height, width = op.y.shape
        rows_in, columns_in = op.x.shape[2:]
        lanes, (kh, kw), (sh, sw) = knobs["lanes"], op.window, op.stride
        top, _, left, _ = op.padding
        is_max = op.kind == "max"

        def combine(a: Any, b: Any) -> Any:
            return e.larger(a, b, target) if is_max else a + b

        neutral = float("-inf") if is_max else 0.0

        with e.function(op, self.constants(op, target, knobs)) as (done, buffers):
            x = buffers[0]
            e.zero_halo(buffers[-1], op.y)
            finish = e.Finish(op, buffers, 1, len(op.inputs), target)

            with e.serial(n) as sample, e.serial(channels) as channel, e.serial(height) as row:
                # Rows of the window inside the image.
                begin = e.let(tirx.max(row * sh - top, 0)) if top else row * sh
                end = row * sh - top + kh
                count = e.let(tirx.min(end, rows_in) - begin) if top or op.padding[1] else kh

                def pool(column: Any, size: int, taps: list[int]) -> Any:
                    """The window's result for `size` columns, of the filter columns `taps`."""
                    acc = e.registers(size)
                    e.store(acc, 0, e.splat(neutral, size))
                    with e.serial(count) as i:
                        line = e.let(op.x.at(sample, channel, begin + i, column * sw - left))
                        values = [e.load(acc, 0, size), *(strided(x, line + j, size, sw) for j in taps)]
                        e.store(acc, 0, reduce.tree(values, combine))
                    return scaled(e.load(acc, 0, size), len(taps))

                def scaled(value: Any, columns: int) -> Any:
                    """Divide a sum by the number of its terms."""
                    size = e.lanes_of(value)
                    if is_max:
                        return value
                    if op.count_include_pad:
                        return value * e.splat(1.0 / (kh * kw), size)
                    if isinstance(count, int):
                        return value * e.splat(1.0 / (count * columns), size)
                    share = tirx.const(1.0 / columns, "float32") / T.cast(count, "float32")
                    return value * e.splat(e.let(share), size)

                def write(column: Any, value: Any) -> None:
                    place = image_place(sample, channel, row, column)
                    finish.store(place(op.y), finish.value(value, place, channel, 1))

                if whole_rows(op):
                    acc = e.registers(lanes)
                    e.store(acc, 0, e.splat(neutral, lanes))
                    with e.serial(count) as i:
                        line = e.let(op.x.at(sample, channel, begin + i, 0))

                        def take(at: Any, fresh: int, _u: int, line: Any = line) -> None:
                            value = reduce.only_fresh(e.load(x, line + at, lanes), fresh, neutral)
                            e.store(acc, 0, combine(e.load(acc, 0, lanes), value))

                        reduce.along(columns_in, lanes, 1, take)
                    write(0, scaled(reduce.across(e.load(acc, 0, lanes), combine), columns_in))
                else:
                    first, last = inner_columns(op)
                    if last - first >= lanes:
                        with e.serial(-(-(last - first) // lanes)) as vector:
                            column = e.let(tirx.min(first + vector * lanes, last - lanes))
                            write(column, pool(column, lanes, list(range(kw))))
                    else:
                        last = first
                    for column in [*range(first), *range(last, width)]:
                        inside = [j for j in range(kw) if 0 <= column * sw - left + j < columns_in]
                        write(column, pool(column, 1, inside))
        return done.done()


def inner_columns(op: Pool2d) -> tuple[int, int]:
    """First and last + 1 of the output columns whose window lies inside the image's width."""
    left = op.padding[2]
    first = -(-left // op.stride[1])
    last = (op.x.shape[3] + left - op.window[1]) // op.stride[1] + 1
    last = min(last, op.y.shape[3])
    return (first, last) if last > first else (0, 0)


def whole_rows(op: Pool2d) -> bool:
    """True when each window covers whole rows, as in global pooling."""
    return op.y.shape[3] == 1 and op.window[1] == op.x.shape[3] and not any(op.padding[2:])
