"""The code of one tile of an int8 convolution: sums, then the way back to fp32 or codes."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.conv.plan import Plan
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d, Quant
from edgecsi.target import Target

_KEEPS_BOUND = ("leaky_relu", "relu", "relu6", "sigmoid", "tanh")


class Arithmetic(Protocol):
    """What an instruction set says about its sums, see `int8.Int8Conv2d`."""

    @property
    def shift(self) -> int: ...

    def copies(self, plan: Plan) -> int: ...

    def step_size(self, plan: Plan, outs: int) -> int: ...

    def size(self, plan: Plan) -> int: ...

    def sums(
        self, plan: Plan, x: Any, at: Sequence[Any], w: Any, weight: Any, acc: Any, first: Any, outs: int
    ) -> None: ...


class Tile:
    """Writes the code of tiles into a function."""

    def __init__(
        self, kernel: Arithmetic, plan: Plan, target: Target, buffers: Sequence[Any], first: int, mapped: bool
    ) -> None:
        from edgecsi.kernels import emit as e

        self.kernel, self.plan, self.target, self.buffers = kernel, plan, target, buffers
        self.weights, self.factor, self.bias = buffers[first : first + 3]
        self.row_bias = buffers[first + 3] if mapped else None
        self.finish = e.Finish(plan.op, buffers, 1, first + (4 if mapped else 3), target)
        self.bounded = bound(plan.op, plan.bias(kernel.shift)) < 2**30

    def tiles(self, sample: Any, h: Any, rows: int, left: Any, columns: Sequence[int]) -> None:
        """All output channels of some rows and input vectors, which start at ``left + column``."""
        from edgecsi.kernels import emit as e

        tiles = self.plan.tiles
        whole = sum(outs == self.plan.outs for _, outs in tiles)
        with e.serial(whole) as i:
            self.tile(sample, h, rows, left, columns, i, self.plan.outs)
        if whole < len(tiles):
            self.tile(sample, h, rows, left, columns, whole, tiles[-1][1])

    def tile(
        self, sample: Any, h: Any, rows: int, left: Any, columns: Sequence[int], index: Any, outs: int
    ) -> None:
        """One tile: the sums from the bias to the last tap, then what follows."""
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        plan, kernel, x = self.plan, self.kernel, self.plan.op.x
        source, at_sample = (self.buffers[-1], 0) if kernel.shift else (self.buffers[0], sample)
        at = [x.at(at_sample, 0, h + r, left + column) for r in range(rows) for column in columns]
        vectors = [(r, column, p) for r in range(rows) for column in columns for p in range(plan.per)]
        acc = e.registers(outs * len(vectors) * plan.lanes, "int32")
        starts = [
            self.start(index * plan.outs + o, h + r, plan.split_at(left, column, p))
            for o in range(outs)
            for r, column, p in vectors
        ]
        sums = [number * plan.lanes for number in range(len(starts))]
        for total, start in zip(sums, starts, strict=True):
            e.store(acc, total, start if plan.op.fine == 1 else e.splat(0, plan.lanes, "int32"))
        per_group = len(plan.taps) * kernel.step_size(plan, outs)
        weight = index * (plan.groups * len(plan.taps) * kernel.step_size(plan, plan.outs))
        copy = kernel.size(plan) if kernel.copies(plan) > 1 else 0
        first = index * plan.outs
        with e.serial(plan.op.planes) as half:
            if plan.op.fine > 1:  # the first plane's sum counts `fine` times
                for total in sums:
                    by = e.splat(plan.op.fine.bit_length() - 1, plan.lanes, "int32")
                    e.store(acc, total, T.shift_left(e.load(acc, total, plan.lanes), by))
            with e.serial(plan.groups if plan.looped else 1) as g:
                moved = [place + (half * plan.groups + g) * plan.plane for place in at]
                place = weight + half * copy + g * per_group
                kernel.sums(plan, source, moved, self.weights, place, acc, first, outs)
        if plan.op.fine > 1:
            for total, start in zip(sums, starts, strict=True):
                e.store(acc, total, e.load(acc, total, plan.lanes) + start)
        places = [(r, column + p * plan.lanes) for r, column, p in vectors]
        self.store(sample, h, left, places, index, outs, acc)

    def start(self, channel: Any, row: Any, at: Any) -> Any:
        """Bias of a vector of pixels: the channel's, or from the rows that differ, `at` a place in `Plan.split`."""
        from edgecsi.kernels import emit as e

        plan = self.plan
        if self.row_bias is None:
            return e.splat(self.bias[channel], plan.lanes)
        width = plan.split(np.zeros(plan.op.y.shape[3])).size
        return e.load(self.bias, self.row_bias[row] + channel * width + at, plan.lanes)

    def store(
        self,
        sample: Any,
        h: Any,
        left: Any,
        places: Sequence[tuple[int, int]],
        index: Any,
        outs: int,
        acc: Any,
    ) -> None:
        """Sums to fp32, epilogue, and to memory: as they are, or as codes in the groups of the next layer."""
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        plan, y = self.plan, self.plan.op.y
        lanes = plan.lanes

        phases = 2 if plan.zips_bytes else 1

        def values(o: int) -> list[Any]:
            channel = index * plan.outs + o
            sums = [e.load(acc, (o * len(places) + v) * lanes, lanes) for v in range(len(places))]
            if plan.paired and not plan.zips_bytes:
                zipped = [lane + half * lanes for lane in range(lanes) for half in range(2)]
                for v in range(0, len(sums), 2):
                    both = sums[v : v + 2]
                    sums[v : v + 2] = [e.shuffle(both, zipped[i : i + lanes]) for i in (0, lanes)]
            result = []
            for total, (r, column) in zip(sums, places, strict=True):
                row, first = h + r, left + column
                factor = e.splat(self.factor[channel], lanes)
                product = T.cast(total, e.vector_type("float32", lanes)) * factor

                def place(lay: Layout, row: Any = row, first: Any = first) -> Any:
                    _, channels, height, width = lay.shape
                    return lay.at(
                        sample,
                        channel if channels > 1 else 0,
                        row if height > 1 else 0,
                        first if width > 1 else 0,
                    )

                result.append(e.let(self.finish.value(product, place, channel, 1)))
            return result

        if not isinstance(plan.op.y_quant, Quant):
            for o in range(outs):
                for value, (r, column) in zip(values(o), places, strict=True):
                    self.finish.store(y.at(sample, index * plan.outs + o, h + r, left + column), value)
            return
        pieces = []
        for o in range(0, outs, y.group):
            channels = [values(o + i) for i in range(min(y.group, outs - o))]
            nothing = e.splat(plan.op.y_quant.offset, lanes)  # whose code is the zero point
            channels += [[nothing] * len(places)] * (y.group - len(channels))
            plane = (index * (plan.outs // y.group) + o // y.group) * (y.rows * y.pitch * y.group)
            for v in range(0, len(places), phases):
                r, column = places[v]
                offset = y.at(sample, 0, h + r, left + column) + plane
                follows = v > 0 and places[v - 1] == (r, column - lanes)
                vectors = [channel[v + phase] for channel in channels for phase in range(phases)]
                pieces.append(e.Piece(offset, vectors, follows, phases))
        e.store_codes(self.finish.y, pieces, plan.op.y_quant, self.target, self.bounded)


def bound(op: Conv2d, bias: NDArray[np.int32]) -> float:
    """The largest magnitude of (output / step of its codes) that any input can give; infinite if unknown."""
    assert op.scale is not None
    assert op.x_quant is not None
    grows = [
        step
        for step in op.epilogue
        if step.op not in _KEEPS_BOUND or max(map(abs, step.params), default=0) > 1
    ]
    if not isinstance(op.y_quant, Quant) or grows:
        return float("inf")
    outs = len(op.scale)
    sums = np.abs(op.weight.astype(np.int64)).reshape(outs, -1).sum(1) * 255.0
    sums *= op.fine + 1 if op.fine > 1 else 1
    sums += np.abs(bias.astype(np.int64)).reshape(outs, -1).max(1)
    value = max(float((sums * np.abs(op.scale.astype(np.float64))).max()) * abs(op.x_quant.scale), 1.0)
    return (value + abs(op.y_quant.offset)) * float(op.y_quant.inverse) * 1.01
