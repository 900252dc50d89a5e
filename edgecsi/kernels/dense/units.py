"""Ways to multiply fp32 inputs with fp32 or int8 weights, for `loop.multiply`; int8 is widened on the way in, and
scaled at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Expr


class FloatUnit:
    """Fp32 weights, or int8 as numbers: one vector of outputs times one input.

    Attributes:
        lanes: of a register. outputs: of one load of weights. raw: the input is read from bytes of the
            workspace.
        steps: instructions for one vector of lanes, loads left out; for costs.
    """

    inputs = 1
    together = 1
    packed = False
    acc_dtype = "float32"
    steps = 1.0
    lane: Any = None

    def __init__(self, lanes: int, outputs: int, dtype: str, raw: bool = False) -> None:
        self.lanes, self.outputs, self.dtype, self.raw = lanes, outputs, dtype, raw
        self.steps = 1.0 if dtype == "float32" else 2.0 if lanes > 4 or dtype == "float16" else 3.0

    @property
    def elements(self) -> int:
        return self.outputs

    @property
    def accumulators(self) -> int:
        return self.outputs // self.lanes

    def prepare(self, named: Mapping[str, Any]) -> None:
        """Take what a format has beside its weights, from the constants by name, and emit loads of it."""

    def load_weights(self, buffer: Any, offset: Expr) -> Any:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        value = e.load(buffer, offset, self.outputs)
        if self.dtype == "int8" and self.lanes == 4 and self.outputs == 16:
            return _widened(e.let(T.reinterpret(value, dtype="uint8x16")))
        if self.dtype != "float32":
            value = T.cast(value, e.vector_type("float32", self.outputs))
        value = e.let(value)
        if self.accumulators == 1:
            return [value]
        return [e.part(value, a * self.lanes, self.lanes) for a in range(self.accumulators)]

    def load_input(self, buffer: Any, offset: Expr) -> Any:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        if self.raw:
            value = T.reinterpret(e.load(buffer, offset * 4, 4), dtype="float32")
        else:
            value = e.load(buffer, offset, 1)
        return e.let(e.splat(value, self.lanes))

    def step(self, sums: Sequence[Expr], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Expr]:
        return [total + w * inputs[0] for total, w in zip(sums, weights[0], strict=True)]

    def total(self, sums: Sequence[Expr]) -> Expr:
        from edgecsi.kernels import emit as e

        return sums[0] if len(sums) == 1 else e.shuffle(sums, range(self.outputs))


def _widened(codes: Expr) -> list[Expr]:
    """16 int8 to four vectors of 4 fp32 on ARM: a table lookup puts each into the top byte of an int32."""
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    result = []
    for first in range(0, 16, 4):
        # Bytes 255, 255, 255, first + lane: what is out of range gives 0.
        index = T.reinterpret(
            T.ramp(T.int32((first << 24) | 0xFFFFFF), T.int32(1 << 24), 4), dtype="uint8x16"
        )
        top = T.reinterpret(e.intrinsic("llvm.aarch64.neon.tbl1", "uint8x16", codes, index), dtype="int32x4")
        result.append(e.let(e.intrinsic("llvm.aarch64.neon.vcvtfxs2fp", "float32x4", top, T.int32(24))))
    return result


class ByteUnit(FloatUnit):
    """Int8 weights on x86: a 32-bit word for each output, with the weights of 4 inputs.

    One instruction moves a weight to the top byte of its word and clears the rest, so that a vector is loaded
    once for 4 inputs, not once for each. Until `total`, sums are 2^24 times too large.

    Args:
        accumulators: 4, a sum for each of the inputs, or 1.
    """

    together = 4
    packed = True

    def __init__(self, lanes: int, accumulators: int, raw: bool = False) -> None:
        super().__init__(lanes, lanes, "int8", raw)
        self.sums = accumulators
        # Three instructions, four of which start in the time of two loads.
        self.steps = 1.5

    @property
    def accumulators(self) -> int:
        return self.sums

    def pack(self, weights: NDArray[np.int8]) -> NDArray[np.int8]:
        """``[blocks, rows]`` weights in the order they are read."""
        blocks, rows = weights.shape
        tiles = weights.reshape(blocks // 4, 4, rows // self.lanes, self.lanes)
        return np.ascontiguousarray(tiles.transpose(0, 2, 3, 1)).reshape(-1)

    def load_weights(self, buffer: Any, offset: Expr) -> Any:
        from edgecsi.kernels import emit as e

        return e.let(e.load(buffer, offset, 4 * self.lanes))

    def step(self, sums: Sequence[Expr], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Expr]:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        result, size = list(sums), 4 * self.lanes
        zeros = e.splat(0, size, "int8")
        for k, x in enumerate(inputs):
            order = [i for word in range(0, size, 4) for i in (size, size, size, word + k)]
            top = T.reinterpret(
                e.shuffle([weights[0], zeros], order), dtype=e.vector_type("int32", self.lanes)
            )
            w = T.cast(top, e.vector_type("float32", self.lanes))
            result[k % self.sums] = e.let(result[k % self.sums] + w * x)
        return result

    def total(self, sums: Sequence[Expr]) -> Expr:
        from edgecsi.kernels import emit as e

        return sum(sums[1:], sums[0]) * e.splat(2.0**-24, self.lanes)


def floats_of(planes: Sequence[Expr]) -> list[Expr]:
    """Four vectors of the 1st, 2nd, 3rd, 4th bytes of fp32 numbers to four vectors of the numbers.

    Bytes are zipped within 128 bits, as instructions do: a result has 4 of every 16 numbers.
    """
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    def zip_(a: Expr, b: Expr, size: int, kind: str) -> list[Expr]:
        lanes, part = e.lanes_of(a), 16 // size
        order = [
            [n for at in range(first, lanes, part) for i in range(at, at + part // 2) for n in (i, lanes + i)]
            for first in (0, part // 2)
        ]
        return [e.let(T.reinterpret(e.shuffle([a, b], o), dtype=f"{kind}x{lanes // 2}")) for o in order]

    low, high = zip_(planes[0], planes[1], 1, "int16"), zip_(planes[2], planes[3], 1, "int16")
    return [w for a, b in zip(low, high, strict=True) for w in zip_(a, b, 2, "float32")]
