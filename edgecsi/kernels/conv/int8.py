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
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.ops.integers import refuses_integers, sums_fit
from edgecsi.ops.layout import vector_widths
from edgecsi.ops.operators import Conv2d
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc
from edgecsi.kernels.conv.plan import Plan
from edgecsi.kernels.conv.tile import Tile


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

    def copies(self, plan: Plan) -> int:
        """How often the weights are stored: 1, or once for each plane of the input."""
        return 1

    def step_size(self, plan: Plan, outs: int) -> int:
        """Elements that a step's weights take."""
        return int(self.pack(np.zeros((outs, *plan.quads.shape[4:]), np.int8)).size)

    def size(self, plan: Plan) -> int:
        """Elements that all weights take, stored once."""
        return plan.groups * len(plan.taps) * sum(self.step_size(plan, count) for _, count in plan.tiles)

    def x_group(self, op: Conv2d, target: Target) -> int:
        return self.vectors(op, target)[0]

    def refuses(self, op: Conv2d, target: Target) -> str:
        if op.x_quant is None or op.x.dtype != "uint8" or op.weight.dtype != np.int8 or op.scale is None:
            return "it needs a uint8 input and int8 weights"
        if reason := self.lacks(target):
            return reason
        if not sums_fit(op):
            return "its sums may exceed 32 bits: there are too many or too large weights"
        if reason := refuses_integers(op.groups, op.stride, op.y.shape[3]):
            return reason
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
        stored = self.copies(plan) * self.size(plan) * self.itemsize
        return Cost(seconds=operations / second + 3e-8, bytes=stored, macs=op.macs)

    def scratch(self, op: Conv2d, target: Target, knobs: Knobs) -> int:
        return op.x.sample + op.x.tail if self.shift else 0

    def constants(self, op: Conv2d, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        from edgecsi.kernels.emit import epilogue_constants

        assert op.scale is not None
        assert op.x_quant is not None
        plan = self.plan(op, target, knobs)
        bias = plan.bias(self.shift)
        factor = np.float32(op.x_quant.scale) * op.scale.astype(np.float32)
        result = [np.tile(self.packed(plan), self.copies(plan)), factor]
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
            writer = Tile(self, plan, target, buffers, first, mapped)
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
