"""Dense layers in int16: every row of the input becomes codes of its own range, and sums are exact.

One instruction multiplies two inputs of an output and adds both products to a 32-bit number: twice the products of fp32
in the same time. It pays where many rows share the weights; one row alone is as fast as the weights are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels import reduce
from edgecsi.kernels.base import Cost, Expr, Kernel, Knobs
from edgecsi.kernels.dense.estimate import cost, dense_vectors, shared_samples
from edgecsi.kernels.dense.loop import LoopShape, multiply
from edgecsi.kernels.dense.results import Results, spill_bytes, spills
from edgecsi.kernels.dense.sparse import Section, pack_all, sections
from edgecsi.kernels.int16 import Largest, add_products, as_bits, steps_of
from edgecsi.kernels.tiling import overlap
from edgecsi.ops.integers import sums_fit
from edgecsi.ops.operators import Dense
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc


class Pairs:
    """A vector of outputs times two inputs, whose codes are one word of the workspace."""

    inputs = 2
    accumulators = 1
    together = 1
    packed = False
    acc_dtype = "int32"
    lane: Any = None

    def __init__(self, target: Target) -> None:
        self.target = target
        self.lanes = self.outputs = 16 if target.dot == "avx512_vnni" else 8
        self.elements = 2 * self.lanes

    def load_weights(self, buffer: Any, offset: Expr) -> Expr:
        from edgecsi.kernels import emit as e

        return e.let(e.load(buffer, offset, self.elements))

    def load_input(self, buffer: Any, offset: Expr) -> Expr:
        from edgecsi.kernels import emit as e

        return e.splat(as_bits(e.load(buffer, offset * 2, 4), "int32"), self.lanes)

    def step(self, sums: Sequence[Expr], weights: Sequence[Expr], inputs: Sequence[Expr]) -> list[Expr]:
        return [add_products(sums[0], inputs[0], weights[0], self.target)]

    def total(self, sums: Sequence[Expr]) -> Expr:
        return sums[0]


@dataclass(frozen=True)
class Int16Dense(Kernel):
    """Int16 weights times int16 codes, which it makes itself.

    Attributes:
        dots: values of `Target.dot` it is written for.

    Knobs:
        rows: outputs of a panel. unroll: pairs of inputs per iteration. samples: rows of the input that share a loaded
        weight.
    """

    op = Dense
    dots: tuple[str, ...]

    def refuses(self, op: Dense, target: Target) -> str:
        if not op.steps or op.weight.dtype != np.int16 or op.x.dtype != "float32":
            return "it needs an fp32 input and int16 weights"
        if target.dot not in self.dots:
            return f"the CPU has no int16 products by {' or '.join(self.dots)}"
        if not sums_fit(op):
            return "its sums may exceed 32 bits: there are too many or too large weights"
        if any(op.x.halo) or op.x.group != 1:
            return "the numbers of a row do not lie side by side"
        return ""

    def knobs(self, op: Dense, target: Target) -> Knobs:
        unit = Pairs(target)
        samples = shared_samples(op.x.shape[0], target, 1)
        outputs, inputs = op.weight.shape
        vectors = min(dense_vectors(samples, target, 1), -(-outputs // unit.outputs))
        pairs = -(-inputs // 2)
        unroll = next(u for u in (4, 2, 1) if pairs % u == 0)
        return {"rows": vectors * unit.outputs, "unroll": unroll, "samples": samples}

    def space(self, op: Dense, target: Target) -> dict[str, Sequence[int]]:
        return {
            "rows": tuple(Pairs(target).outputs * v for v in (1, 2, 3, 4)),
            "unroll": (1, 2, 4, 8),
            "samples": tuple(s for s in (1, 2, 4, 6, 8, 12) if s <= op.x.shape[0]),
        }

    def cost(self, op: Dense, target: Target, knobs: Knobs) -> Cost:
        outputs, inputs = op.weight.shape
        unit = Pairs(target)
        panels, pairs = -(-outputs // knobs["rows"]), -(-inputs // 2)
        return cost(
            target,
            batch=op.x.shape[0],
            blocks=panels * pairs,
            panels=panels,
            vectors=knobs["rows"] // unit.outputs,
            vector_bytes=4 * unit.lanes,
            instructions=1.0 if target.dot != "avx2" else 1.4,
            index_bytes=0,
            samples=knobs["samples"],
            prepared=12 * inputs + (8 * outputs if spills(op, False, target.lanes_f32) else 0),
            macs=outputs * inputs,
        )

    def _pack(self, op: Dense, target: Target, knobs: Knobs) -> dict[str, NDArray[Any]]:
        assert op.scale is not None
        values = pack_all(op.weight, self._parts(op, target, knobs), 2, knobs["unroll"]).values
        packed: dict[str, NDArray[Any]] = {"weights": np.concatenate([v.reshape(-1) for v in values])}
        packed["scale"] = op.scale.astype(np.float32)
        if op.bias is not None:
            packed["bias"] = op.bias.astype(np.float32)
        return packed

    def _parts(self, op: Dense, target: Target, knobs: Knobs) -> list[Section]:
        return sections(len(op.weight), knobs["rows"], Pairs(target).outputs)

    def constants(self, op: Dense, target: Target, knobs: Knobs) -> list[NDArray[Any]]:
        from edgecsi.kernels.emit import epilogue_constants

        return [*self._pack(op, target, knobs).values(), *epilogue_constants(op)]

    def _room(self, op: Dense, target: Target, knobs: Knobs) -> tuple[int, int, int, int]:
        """Codes between rows; and where in the workspace steps and spilled sums begin, and its end."""
        stride = -(-op.weight.shape[1] // (2 * knobs["unroll"])) * 2 * knobs["unroll"]
        units = _line(2 * stride * op.x.shape[0])
        sums = units + _line(4 * op.x.shape[0])
        return stride, units, sums, sums + (spill_bytes(op) if spills(op, False, target.lanes_f32) else 0)

    def scratch(self, op: Dense, target: Target, knobs: Knobs) -> int:
        return self._room(op, target, knobs)[-1]

    def emit(self, op: Dense, target: Target, knobs: Knobs) -> PrimFunc:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        packed = self._pack(op, target, knobs)
        constants = [*packed.values(), *e.epilogue_constants(op)]
        stride, units, sums, end = self._room(op, target, knobs)
        loop = LoopShape(
            parts=self._parts(op, target, knobs), unroll=knobs["unroll"], sets=1, samples=knobs["samples"],
            blocks=stride // 2,
        )  # fmt: skip
        with e.function(op, constants, end) as (done, buffers):
            e.zero_halo(buffers[len(op.inputs) + len(constants)], op.y)
            named = dict(zip(packed, buffers[len(op.inputs) :], strict=False))
            finish = e.Finish(op, buffers, 1, len(op.inputs) + len(packed), target)
            scratch = buffers[-1]
            _write_codes(op, target, buffers[0], scratch, stride, units)

            def value(total: Expr, output: Expr, row: Expr) -> Expr:
                lanes = e.lanes_of(total)
                unit = as_bits(e.load(scratch, units + row * 4, 4), "float32")
                factor = e.splat(unit, lanes) * e.load(named["scale"], output, lanes)
                result = e.fence(T.cast(total, e.vector_type("float32", lanes)) * factor)
                return result + e.load(named["bias"], output, lanes) if "bias" in named else result

            spill = (scratch, sums) if spills(op, False, target.lanes_f32) else None
            results = Results(op, finish, target.lanes_f32, value, spill)
            results.open()
            multiply(
                Pairs(target), loop, op.x.shape[0], named["weights"], scratch, stride, None, None, results
            )
            results.close()
        return done.done()


def _write_codes(op: Dense, target: Target, x: Any, scratch: Any, stride: int, units: int) -> None:
    """Emit the pass over the input that leaves codes of every row, and what one is worth, in the workspace."""
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    rows, length = op.x.shape[0], op.weight.shape[1]
    lanes = reduce.lanes_for(length, target.lanes_f32)
    blocks = -(-length // lanes)

    def write(first: Expr, count: int) -> None:
        starts = [e.let((first + k) * op.x.stride) for k in range(count)]
        largest = [Largest(lanes) for _ in starts]
        with e.serial(blocks) as block:
            at = e.let(overlap(block, lanes, length))
            for one, start in zip(largest, starts, strict=True):
                one.see(e.load(x, start + at, lanes))
        if count == 4:
            bits = reduce.four_across([one.vector() for one in largest], T.max)
        else:
            bits = largest[0].bits()
        inverse, unit = steps_of(bits, op.steps)
        e.store(scratch, units + first * 4, as_bits(unit, "uint8"))
        factors = [
            e.let(e.splat(e.part(inverse, k, 1) if count > 1 else inverse, lanes)) for k in range(count)
        ]
        with e.serial(blocks) as block:
            at = e.let(overlap(block, lanes, length))
            for k, (start, factor) in enumerate(zip(starts, factors, strict=True)):
                scaled = e.load(x, start + at, lanes) * factor
                code = e.to_int(scaled, target, bounded=True) if lanes >= 4 else e.round_to_int(scaled)
                code = T.cast(code, e.vector_type("int16", lanes))
                e.store(scratch, ((first + k) * stride + at) * 2, as_bits(code, "uint8"))

    # Four rows at a time wait for each other's ranges; a short row's own would take longer than its codes.
    fours = rows // 4 if lanes >= 4 else 0
    if fours:
        with e.serial(fours) as four:
            write(four * 4, 4)
    with e.serial(rows - 4 * fours) as row:
        write(4 * fours + row, 1)


def _line(size: int) -> int:
    """Filled up to the line of a cache."""
    return -(-size // 64) * 64
