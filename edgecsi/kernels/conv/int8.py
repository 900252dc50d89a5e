"""What the int8 convolutions share: blocking, borders, zero points and the way back to fp32 or codes.

Lanes are pixels. Each lane of an input vector holds one *quad* of codes that a multiply-add reduces: the
channels of a group for one pixel, or two channels of two neighbouring columns (`paired`). A tile of `outs`
output channels x `rows` rows x `cols` input vectors keeps its int32 sums in registers.

The zero point costs nothing: ``sum((x - zp) * w) = sum(x * w) - zp * sum(w)``, and the second term is part of
the bias. That holds at the border as well: the halo holds a code (`Layout.fill`) and is read like any pixel.

An input in two planes is read plane by plane with the same weights and into the same registers, which are shifted left
in between: no coarser weights for the second plane, and no second set of sums.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Kernel, Knobs
from edgecsi.ops.layout import Layout, vector_widths
from edgecsi.ops.operators import Conv2d, Cost
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

_KEEPS_BOUND = ("leaky_relu", "relu", "relu6", "sigmoid", "tanh")


@dataclass(frozen=True)
class Plan:
    """How one operator is computed: what the code generator and the weight packer agree on.

    Attributes:
        group: channels side by side in the input. paired: lanes hold two columns of two channels.
        lanes: pixels of one int32 vector. per: int32 vectors that one input vector feeds.
        outs, rows, cols: the tile. unroll: steps up to which a tile's sums are straight code; with more, the
            channel groups are a loop.
    """

    op: Conv2d
    group: int
    paired: bool
    lanes: int
    per: int
    outs: int
    rows: int
    cols: int
    unroll: int

    @property
    def unit(self) -> int:
        """Pixels of one input vector."""
        return self.lanes * self.per

    @property
    def starts(self) -> list[int]:
        """First columns of the input vectors of a row; the last one overlaps if the width is no multiple."""
        width = self.op.y.shape[3]
        starts = list(range(0, width - self.unit + 1, self.unit))
        return starts if width % self.unit == 0 else [*starts, width - self.unit]

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """Output channels tile by tile: (first, count)."""
        total = int(self.op.weight.shape[0])
        return [(o, min(self.outs, total - o)) for o in range(0, total, self.outs)]

    @cached_property
    def quads(self) -> NDArray[np.int8]:
        """Weights by what an instruction reads: ``[O, groups, KH, columns, per or 1, group or 4]``.

        Paired, even pixels 2j read columns (0,1) (2,3) … of the kernel from the same vectors from which odd
        ones read (-,0) (1,2) …; the fifth axis tells them apart.
        """
        w = np.asarray(self.op.weight, np.int8)
        outs, channels, kh, kw = w.shape
        if not self.paired:
            groups = -(-channels // self.group)
            full = np.zeros((outs, groups * self.group, kh, kw), np.int8)
            full[:, :channels] = w
            return full.reshape(outs, groups, self.group, kh, kw, 1).transpose(0, 1, 3, 4, 5, 2)
        wide = np.zeros((outs, 2, kh, kw + 3), np.int8)
        wide[:, :channels, :, 1 : kw + 1] = w
        columns = kw // 2 + 1
        result = np.zeros((outs, 1, kh, columns, 2, 4), np.int8)
        for t in range(columns):
            for q in range(2):
                result[:, 0, :, t, 0, 2 * q : 2 * q + 2] = wide[:, :, :, 2 * t + q + 1].transpose(0, 2, 1)
                result[:, 0, :, t, 1, 2 * q : 2 * q + 2] = wide[:, :, :, 2 * t + q].transpose(0, 2, 1)
        return result

    @property
    def groups(self) -> int:
        return int(self.quads.shape[1])

    @cached_property
    def taps(self) -> list[tuple[int, int]]:
        """(row, column) of the kernel's taps with any weight at all; columns as in `quads`."""
        used = self.quads.any(axis=(0, 1, 4, 5))
        return [(int(i), int(j)) for i, j in np.argwhere(used)] or [(0, 0)]

    @property
    def zips_bytes(self) -> bool:
        """Sums of even and odd pixels are brought together as codes: four times cheaper than before, but no step
        may read another tensor."""
        return (
            self.paired and self.op.y_quant is not None and all(s.operand is None for s in self.op.epilogue)
        )

    @property
    def looped(self) -> bool:
        """Channel groups are a loop."""
        return self.groups > 1 and self.groups * len(self.taps) > self.unroll

    @property
    def plane(self) -> int:
        """Bytes of one group of input channels."""
        x = self.op.x
        return x.rows * x.pitch * x.group

    @property
    def steps(self) -> list[int]:
        """Bytes from an output pixel's place in the input to what each step reads: the taps of one channel
        group if `looped`, else of all groups."""
        top, _, left, _ = self.op.padding
        apart = 2 if self.paired else self.op.dilation[1]
        down = self.op.dilation[0]
        taps = [((i * down - top) * self.op.x.pitch + j * apart - left) * self.group for i, j in self.taps]
        return taps if self.looped else [g * self.plane + tap for g in range(self.groups) for tap in taps]

    def split(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The last axis by the vectors that hold its pixels: if `paired`, even columns and then odd ones."""
        if not self.paired:
            return rows
        even, odd = rows[..., ::2], rows[..., 1::2]
        filled = np.zeros_like(even)
        filled[..., : odd.shape[-1]] = odd
        return np.concatenate([even, filled], -1)

    def split_at(self, left: Any, column: int, p: int) -> Any:
        """Where `split` puts the pixels of int32 vector `p` of the input vector at ``left + column``, of which
        `left` is a multiple of input vectors."""
        if not self.paired:
            return left + column + p * self.lanes
        half = -(-self.op.y.shape[3] // 2)
        return (column + p) % 2 * half + left // 2 + (column + p) // 2

    def step_quads(self, first: int, outs: int) -> NDArray[np.int8]:
        """Weights of some output channels, ``[groups * taps, outs, per or 1, quad]``, step by step."""
        rows, columns = (list(axis) for axis in zip(*self.taps, strict=True))
        picked = self.quads[first : first + outs, :, rows, columns]
        result: NDArray[np.int8] = np.moveaxis(picked, 0, 2).reshape(-1, outs, *picked.shape[3:])
        return result

    def bias(self, shift: int) -> NDArray[np.int32]:
        """Bias with the zero point folded in, ``[O]`` or ``[O, H, W]``; `shift` was taken from all codes."""
        assert self.op.x_quant is not None
        sums = self.op.weight.astype(np.int64).sum((1, 2, 3)) * (shift - self.op.x_quant.zero_point)
        if self.op.fine > 1:
            sums *= self.op.fine + 1
        bias = self.op.bias
        if bias is None:
            return np.asarray(sums, np.int32)
        if bias.ndim == 3 and (bias == bias[:, :1, :1]).all():
            bias = bias[:, 0, 0]
        shape = (-1, *[1] * (bias.ndim - 1))
        return np.asarray(bias.astype(np.int64) + sums.reshape(shape), np.int32)


class Int8Conv2d(Kernel):
    """A convolution of uint8 codes with int8 weights; subclasses name the instruction.

    Attributes:
        shift: subtracted from the codes: 128 where the instruction wants signed operands. That is one pass
            over the input into the scratch; done at every load it would take an eighth of all instructions.
        unroll: see `Plan`. itemsize: bytes of an element of the packed weights.
        own_code: every tile of output channels has code of its own, which goes over the whole image.
    """

    op = Conv2d
    shift: ClassVar[int] = 0
    unroll: ClassVar[int] = 40
    itemsize: ClassVar[int] = 1
    own_code: ClassVar[bool] = False

    @abstractmethod
    def lacks(self, target: Target) -> str:
        """What the target lacks for this kernel; empty if nothing."""

    @abstractmethod
    def vectors(self, op: Conv2d, target: Target) -> tuple[int, bool, int, int]:
        """Channel group, columns are paired, pixels of an int32 vector, int32 vectors per input vector."""

    @abstractmethod
    def pack(self, quads: NDArray[np.int8]) -> NDArray[Any]:
        """Weights of one step as the instruction reads them, 1-D; `quads` is ``[outs, per or 1, quad]``."""

    @abstractmethod
    def add(self, plan: Plan, x: Any, at: Sequence[Any], w: Any, weight: Any, acc: Any, outs: int) -> None:
        """Add one step to the sums.

        Args:
            x: the input, shifted. at: byte offset of every input vector of the tile. w: the packed weights.
            weight: where the step's weights begin. acc: int32 registers; vector `p` of channel `o` and input
                vector `v` is number ``(o * len(at) + v) * plan.per + p``.
        """

    def sums(
        self, plan: Plan, x: Any, at: Sequence[Any], w: Any, weight: Any, acc: Any, first: Any, outs: int
    ) -> None:
        """Add all of `plan.steps` for the `outs` output channels from the `first`; other arguments as for `add`,
        for the step that reads a pixel's own place."""
        size = self.step_size(plan, outs)
        for i, step in enumerate(plan.steps):
            self.add(plan, x, [place + step for place in at], w, weight + i * size, acc, outs)

    def packed(self, plan: Plan) -> NDArray[Any]:
        """All weights, tile by tile and step by step."""
        return np.concatenate([self.pack(q) for tile in plan.tiles for q in plan.step_quads(*tile)])

    def step_size(self, plan: Plan, outs: int) -> int:
        """Elements that a step's weights take."""
        return int(self.pack(np.zeros((outs, *plan.quads.shape[4:]), np.int8)).size)

    def x_group(self, op: Conv2d, target: Target) -> int:
        return self.vectors(op, target)[0]

    def refuses(self, op: Conv2d, target: Target) -> str:
        if op.x_quant is None or op.x.dtype != "uint8" or op.weight.dtype != np.int8 or op.scale is None:
            return "it needs a uint8 input and int8 weights"
        if reason := self.lacks(target):
            return reason
        if op.groups != 1 or op.stride != (1, 1):
            return "it has no strides and no grouped convolutions"
        if op.y.shape[3] < 4:
            return "rows of fewer than 4 pixels"
        if op.fine > 1 and op.weight.shape[1] % self.x_group(op, target):
            return "the two planes of the input share a group of channels"
        top, bottom, left, right = op.padding
        if op.x.halo[0] < top or op.x.halo[1] < bottom or op.x.lead < max(left, right):
            return "the input's halo is narrower than the padding"
        if op.x.group != self.x_group(op, target):
            return f"the input has groups of {op.x.group} channels, not {self.x_group(op, target)}"
        if (op.y_quant is None) != (op.y.dtype == "float32") or op.y.dtype not in ("float32", "uint8"):
            return "the output is neither fp32 nor uint8 codes"
        if op.y.group not in ((1,) if op.y_quant is None else (1, 2, 4)):
            return f"an output in groups of {op.y.group} channels"
        for step in op.epilogue:
            if step.operand is not None and (step.operand.dtype != "float32" or step.operand.group != 1):
                return "an epilogue operand that is not a plain fp32 image"
        return ""

    def plan(self, op: Conv2d, target: Target, knobs: Knobs) -> Plan:
        group, paired, lanes, per = self.vectors(op, target)
        return Plan(op, group, paired, lanes, per, knobs["outs"], knobs["rows"], knobs["cols"], self.unroll)

    def tile(self, op: Conv2d, target: Target, outs: int, rows: int, cols: int, sums: int) -> dict[str, int]:
        """The largest tile within limits: output channels, rows, input vectors a row, int32 vectors."""
        _, _, lanes, per = self.vectors(op, target)
        channels = int(op.weight.shape[0])
        even = -(-channels // -(-channels // outs))
        # Whole groups of the output, so that channels that are stored side by side are computed together.
        share = -(-even // op.y.group) * op.y.group
        units = len(Plan(op, 1, False, lanes, per, 1, 1, 1, 1).starts)
        tall = _divisor(op.y.shape[2], min(rows, sums // (share * per)))
        wide = _divisor(units, min(cols, sums // (share * per * tall)))
        return {"outs": share, "rows": tall, "cols": wide}

    def space(self, op: Conv2d, target: Target) -> dict[str, Sequence[int]]:
        multiple = op.y.group
        outs = {-(-o // multiple) * multiple for o in (1, 2, 4, 8, 16) if o < 2 * op.weight.shape[0]}
        return {"outs": sorted(outs | {self.knobs(op, target)["outs"]}), "rows": (1, 2, 4), "cols": (1, 2, 4)}

    def work(self, plan: Plan, vectors: int, outs: int) -> tuple[float, float]:
        """Instructions of one step of a tile of so many input vectors: multiply-adds, and all others."""
        return outs * vectors * plan.per, vectors + outs * plan.per

    def cost(self, op: Conv2d, target: Target, knobs: Knobs) -> Cost:
        plan = self.plan(op, target, knobs)
        n, height = op.y.shape[0], op.y.shape[2]
        vectors = plan.rows * plan.cols
        blocks = n * -(-height // plan.rows) * -(-len(plan.starts) // plan.cols)
        steps = plan.groups * len(plan.taps) * op.planes
        arm = target.arch == "aarch64"
        # Two instructions of any kind for every multiply-add that the unit can do, on x86; ARM boards do one.
        rate = 1.0 if arm else 0.5
        finishing = (
            (4 if op.y_quant is None else 9) + 2 * len(op.epilogue) + (plan.paired and not plan.zips_bytes)
        )
        operations = 0.0
        for _, count in plan.tiles:
            multiplies, others = self.work(plan, vectors, count)
            summing = steps * max(multiplies, (multiplies + others) * rate)
            operations += blocks * (summing + rate * count * vectors * plan.per * finishing + 10)
        operations += rate * n * op.y.channels // op.y.group * op.y.rows * 2  # the output's halo
        operations += 3 * n * op.x.sample / 16 if self.shift else 0
        second = target.peak_gmacs_f32 * 1e9 / target.lanes_f32  # vector multiply-adds a second
        packed = (
            sum(steps * self.step_size(plan, count) for _, count in plan.tiles) * self.itemsize / op.planes
        )
        return Cost(seconds=operations / second + 3e-8, bytes=int(packed), macs=op.macs)

    def scratch(self, op: Conv2d, target: Target, knobs: Knobs) -> int:
        return op.x.sample + op.x.tail if self.shift else 0

    def constants(self, op: Conv2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        from edgecsi.kernels.emit import epilogue_constants

        assert op.scale is not None
        assert op.x_quant is not None
        plan = self.plan(op, target, knobs)
        bias = plan.bias(self.shift)
        factor = np.float32(op.x_quant.scale) * op.scale.astype(np.float32)
        result = [self.packed(plan), factor]
        if bias.ndim == 1:
            result.append(bias)
        else:
            kinds, which = np.unique(plan.split(bias).swapaxes(0, 1), axis=0, return_inverse=True)
            rows = which.reshape(-1) * kinds[0].size
            result += [np.ascontiguousarray(kinds).reshape(-1), rows.astype(np.int32)]
        return [*result, *epilogue_constants(op)]

    def emit(self, op: Conv2d, target: Target, knobs: Knobs) -> PrimFunc:
        from edgecsi.kernels import emit as e

        plan = self.plan(op, target, knobs)
        if plan.outs % op.y.group:
            raise ValueError("a tile splits a group of output channels")
        constants = self.constants(op, target, knobs)
        mapped = plan.bias(self.shift).ndim == 3
        with e.function(op, constants, self.scratch(op, target, knobs)) as (done, buffers):
            e.align_stack(target)
            e.zero_halo(buffers[len(op.inputs) + len(constants)], op.y)
            first = len(op.inputs)
            writer = _Tile(self, plan, target, buffers, first, mapped)
            height, starts = op.y.shape[2], plan.starts
            chunks = [starts[i : i + plan.cols] for i in range(0, len(starts), plan.cols)]
            step = plan.cols * plan.unit
            even = len(chunks) > 1 and all(
                chunk == [start + i * step for start in chunks[0]] for i, chunk in enumerate(chunks)
            )
            with e.serial(op.y.shape[0]) as sample:
                if self.shift:
                    flip(buffers[0], sample * op.x.stride, buffers[-1], op.x.sample + op.x.tail)

                def everywhere(write: Callable[[Any, Any, int, Any, Sequence[int]], None]) -> None:
                    """Go over the image: the sample, a row and how many, a column and columns from there."""

                    def row_block(h: Any, rows: int) -> None:
                        if even:
                            with e.serial(len(chunks)) as i:
                                write(sample, h, rows, i * step, chunks[0])
                        else:
                            for chunk in chunks:
                                write(sample, h, rows, 0, chunk)

                    blocks, rest = divmod(height, plan.rows)
                    with e.serial(blocks) as block:
                        row_block(block * plan.rows, plan.rows)
                    if rest:
                        row_block(height - rest, rest)

                if self.own_code:
                    for index, (_, outs) in enumerate(plan.tiles):
                        everywhere(partial(writer.tile, index=index, outs=outs))
                else:
                    everywhere(writer.tiles)
        return done.done()


class _Tile:
    """Writes the code of tiles into a function."""

    def __init__(
        self, kernel: Int8Conv2d, plan: Plan, target: Target, buffers: Sequence[Any], first: int, mapped: bool
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
        first = index * plan.outs
        with e.serial(plan.op.planes) as half:
            if plan.op.fine > 1:  # the first plane's sum counts `fine` times
                for total in sums:
                    by = e.splat(plan.op.fine.bit_length() - 1, plan.lanes, "int32")
                    e.store(acc, total, T.shift_left(e.load(acc, total, plan.lanes), by))
            with e.serial(plan.groups if plan.looped else 1) as g:
                moved = [place + (half * plan.groups + g) * plan.plane for place in at]
                kernel.sums(plan, source, moved, self.weights, weight + g * per_group, acc, first, outs)
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

        if plan.op.y_quant is None:
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


def _divisor(total: int, most: int) -> int:
    """The largest divisor of `total` up to `most`."""
    return next((d for d in range(most, 1, -1) if total % d == 0), 1)


def flip(source: Any, at: Any, target: Any, count: int) -> None:
    """Copy `count` uint8 codes minus 128 (as int8, of which a uint8 buffer holds the bits)."""
    from edgecsi.kernels import emit as e

    def some(start: Any, lanes: int) -> None:
        e.store(target, start, e.load(source, at + start, lanes) ^ e.splat(128, lanes, "uint8"))

    blocks, rest = divmod(count, 64)
    with e.serial(blocks) as block:
        some(block * 64, 64)
    for offset, lanes in vector_widths(rest, 64):
        some(blocks * 64 + offset, lanes)


def bound(op: Conv2d, bias: NDArray[np.int32]) -> float:
    """The largest magnitude of (output / step of its codes) that any input can give; infinite if unknown."""
    assert op.scale is not None
    assert op.x_quant is not None
    grows = [step for step in op.epilogue if step.op not in _KEEPS_BOUND or max(step.params, default=0) > 1]
    if op.y_quant is None or grows:
        return float("inf")
    outs = len(op.scale)
    sums = np.abs(op.weight.astype(np.int64)).reshape(outs, -1).sum(1) * 255.0
    sums *= op.fine + 1 if op.fine > 1 else 1
    sums += np.abs(bias.astype(np.int64)).reshape(outs, -1).max(1)
    value = max(float((sums * np.abs(op.scale.astype(np.float64))).max()) * abs(op.x_quant.scale), 1.0)
    return (value + abs(op.y_quant.offset)) * float(op.y_quant.inverse) * 1.01


def pairs_columns(op: Conv2d, narrowest: int) -> bool:
    """Two input channels would leave half of every quad empty: take two columns of each instead."""
    kernel = op.weight.shape[3]
    return op.weight.shape[1] <= 2 and kernel % 2 == 1 and op.dilation[1] == 1 and op.y.shape[3] >= narrowest
