"""Ways to multiply fp32 inputs with stored weights, for `dense_loop.multiply`.

Weights are fp32, int8 (widened on the way in, scaled at the end), 4-bit indices into a table of 16 that stays
in registers, 8-bit ones into one of 256, or single weights whose inputs are picked out of a window of neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.dense.loop import each_run
from edgecsi.ops.layout import Layout
from edgecsi.target import Target

Expr = Any


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
        self.steps = 1.0 if dtype == "float32" else 2.0 if lanes > 4 else 3.0

    @property
    def elements(self) -> int:
        return self.outputs

    @property
    def accumulators(self) -> int:
        return self.outputs // self.lanes

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


class TableUnit(FloatUnit):
    """Weights are 4-bit indices; several inputs share a vector of them.

    On x86 a vector holds a 32-bit word for each output, with 8 inputs, and the table is permuted by it. On
    ARM it holds a byte for each of 16 outputs, with 2 inputs; each byte of the fp32 number comes out of its
    own table.
    """

    packed = True

    def __init__(self, target: Target, raw: bool = False) -> None:
        arm = target.arch == "aarch64"
        super().__init__(target.lanes_f32, 16 if arm else target.lanes_f32, "uint8", raw)
        self.arm = arm
        self.together = 2 if arm else 8
        self.steps = 4.0 if arm else 3.0 if self.lanes == 16 else 6.0
        self.tables: list[Expr] = []

    @property
    def elements(self) -> int:
        """Bytes of one input's indices."""
        return self.outputs // 2

    @property
    def accumulators(self) -> int:
        return 4 if self.arm else 2

    def constant(self, table: NDArray[np.float32]) -> NDArray[Any]:
        """The table as `prepare` reads it."""
        full = np.zeros(16, np.float32)
        full[: table.size] = table
        return np.ascontiguousarray(full.view(np.uint8).reshape(16, 4).T).reshape(-1) if self.arm else full

    def prepare(self, table: Any) -> None:
        """Emit the loads of the table."""
        from edgecsi.kernels import emit as e

        size = 16 if self.arm else self.lanes
        self.tables = [e.let(e.load(table, at, size)) for at in range(0, 64 if self.arm else 16, size)]

    def pack(self, indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``[blocks, rows]`` indices to bytes, `together` blocks at a time."""
        blocks, rows = indices.shape
        tiles = indices.reshape(blocks // self.together, self.together, rows // self.outputs, self.outputs)
        shifts = (4 * np.arange(self.together, dtype=np.uint32)).reshape(1, -1, 1, 1)
        words = np.bitwise_or.reduce(tiles.astype(np.uint32) << shifts, axis=1)
        words = words.astype(np.uint8 if self.arm else np.uint32)
        return np.ascontiguousarray(words).reshape(-1).view(np.uint8)

    def load_weights(self, buffer: Any, offset: Expr) -> Any:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        if self.arm:
            return e.let(e.load(buffer, offset, 16))
        words = e.load(buffer, offset, 4 * self.lanes)
        return e.let(T.reinterpret(words, dtype=f"int32x{self.lanes}"))

    def step(self, sums: Sequence[Expr], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Expr]:
        from edgecsi.kernels import emit as e

        result = list(sums)
        for k, x in enumerate(inputs):
            if self.arm:
                result = [total + w * x for total, w in zip(result, self._bytes(weights[0], k), strict=True)]
            else:
                result[k % 2] = e.let(result[k % 2] + self._word(weights[0], k) * x)
        return result

    def _word(self, words: Expr, k: int) -> Expr:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        kind = f"float32x{self.lanes}"
        index = T.shift_right(words, e.splat(4 * k, self.lanes, "int32")) if k else words
        if self.lanes == 16:
            return e.intrinsic("llvm.x86.avx512.permvar.sf.512", kind, self.tables[0], index)
        low, high = (e.intrinsic("llvm.x86.avx2.permps", kind, t, index) for t in self.tables)
        # The index's fourth bit, moved to the sign, picks the half of the table.
        sign = T.shift_left(words, e.splat(28 - 4 * k, self.lanes, "int32")) if k < 7 else words
        return e.intrinsic("llvm.x86.avx.blendv.ps.256", kind, low, high, T.reinterpret(sign, dtype=kind))

    def _bytes(self, pairs: Expr, k: int) -> list[Expr]:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        index = T.shift_right(pairs, e.splat(4, 16, "uint8")) if k else pairs & e.splat(15, 16, "uint8")
        index = e.let(index)
        return floats_of([e.intrinsic("llvm.aarch64.neon.tbl1", "uint8x16", t, index) for t in self.tables])

    def total(self, sums: Sequence[Expr]) -> Expr:
        from edgecsi.kernels import emit as e

        return e.shuffle(sums, range(16)) if self.arm else sums[0] + sums[1]


class ByteTableUnit(FloatUnit):
    """Weights are bytes: indices into a table of 17 to 256.

    Up to 64 stay in registers: two of AVX-512 are permuted together, on ARM each byte of the fp32 number is
    looked up in a table of 64 bytes. Larger tables, and all on AVX2, are read from the first-level cache.
    """

    def __init__(self, target: Target, entries: int, raw: bool = False) -> None:
        self.arm = target.arch == "aarch64"
        self.small = entries <= 64 and target.lanes_f32 != 8
        self.pairs = 1 if entries <= 32 else 2
        super().__init__(target.lanes_f32, 16 if self.arm else target.lanes_f32, "uint8", raw)
        if self.arm:
            self.steps = 5.0 if self.small else 12.0
        else:
            self.steps = (2.0 if self.pairs == 1 else 5.0) if self.small else float(self.lanes)
        self.table: Any = None
        self.registers: list[Expr] = []

    def constant(self, table: NDArray[np.float32]) -> NDArray[Any]:
        """The table as `prepare` reads it."""
        full = np.zeros(64 if table.size <= 64 else 256, np.float32)
        full[: table.size] = table
        if self.arm and self.small:
            return np.ascontiguousarray(full.view(np.uint8).reshape(-1, 4).T).reshape(-1)
        return full

    def prepare(self, table: Any) -> None:
        """Emit the loads of the table."""
        from edgecsi.kernels import emit as e

        self.table = table
        if self.small:
            total, size = (256, 16) if self.arm else (32 * self.pairs, 16)
            self.registers = [e.let(e.load(table, at, size)) for at in range(0, total, size)]

    def load_weights(self, buffer: Any, offset: Expr) -> Any:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        if self.arm and not self.small:
            places = [T.cast(buffer[offset + k], "int32") for k in range(16)]
            picked = [self.table[place] for place in places]
            return [e.let(e.shuffle(picked[k : k + 4], range(4))) for k in range(0, 16, 4)]
        code = e.let(e.load(buffer, offset, self.outputs))
        if self.arm:
            planes = [
                e.intrinsic("llvm.aarch64.neon.tbl4", "uint8x16", *self.registers[k : k + 4], code)
                for k in range(0, 16, 4)
            ]
            return floats_of(planes)
        kind = f"float32x{self.lanes}"
        index = e.let(T.cast(code, f"int32x{self.lanes}"))
        if not self.small:
            return [e.let(self._gather(index))]
        values = [
            e.intrinsic("llvm.x86.avx512.vpermi2var.ps.512", kind, a, index, b)
            for a, b in zip(self.registers[::2], self.registers[1::2], strict=True)
        ]
        if self.pairs == 1:
            return [e.let(values[0])]
        upper = (index & e.splat(32, 16, "int32")) > e.splat(0, 16, "int32")
        return [e.let(T.Select(upper, values[1], values[0]))]

    def _gather(self, index: Expr) -> Expr:
        from tvm import tirx
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        kind = f"float32x{self.lanes}"
        where, nothing = T.address_of(self.table[0]), e.splat(0.0, self.lanes)
        if self.lanes == 16:
            every = e.splat(tirx.const(True, "bool"), 16)
            name = "llvm.x86.avx512.mask.gather.dps.512"
            return e.intrinsic(name, kind, nothing, where, index, every, tirx.const(4, "int32"))
        every = T.reinterpret(e.splat(-1, self.lanes, "int32"), dtype=kind)
        name = "llvm.x86.avx2.gather.d.ps.256"
        return e.intrinsic(name, kind, nothing, where, index, every, tirx.const(4, "int8"))


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


class WindowUnit(FloatUnit):
    """Single weights, one of each output, whose inputs lie in a window of two registers: a permutation
    fetches them.

    `lane` is the buffer of `Slices.lane`, a byte for each weight, as `code` writes them.
    """

    def __init__(self, lanes: int, dtype: str) -> None:
        super().__init__(lanes, lanes, dtype)
        self.width = 2 * lanes
        self.steps = 5.0 if lanes == 16 else 6.0

    def code(self, lane: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Lanes of the window as bytes; on 8 lanes the sign picks the second register."""
        if self.lanes == 16:
            return lane.astype(np.uint8)
        return ((lane & 7) | ((lane >> 3) << 7)).astype(np.uint8)

    def load_weights(self, buffer: Any, offset: Expr) -> Any:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        weights = super().load_weights(buffer, offset)
        code = e.load(self.lane, offset, self.lanes)
        if self.lanes == 8:
            code = T.reinterpret(code, dtype="int8x8")
        return [weights[0], e.let(T.cast(code, f"int32x{self.lanes}"))]

    def load_input(self, buffer: Any, offset: Expr) -> Any:
        from edgecsi.kernels import emit as e

        return [e.let(e.load(buffer, offset + half, self.lanes)) for half in (0, self.lanes)]

    def step(self, sums: Sequence[Expr], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Expr]:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        (w, lane), (a, b) = weights[0], inputs[0]
        kind = f"float32x{self.lanes}"
        if self.lanes == 16:
            x = e.intrinsic("llvm.x86.avx512.vpermi2var.ps.512", kind, a, lane, b)
        else:
            low, high = (e.intrinsic("llvm.x86.avx2.permps", kind, v, lane) for v in (a, b))
            x = e.intrinsic("llvm.x86.avx.blendv.ps.256", kind, low, high, T.reinterpret(lane, dtype=kind))
        return [sums[0] + w * x]


class PlaneUnit(FloatUnit):
    """Single weights whose inputs lie in a window of 128, on CPUs that permute bytes (AVX-512 VBMI).

    The input lies in four planes in the workspace, as `split` leaves it there: the first bytes of all fp32
    numbers, then the second, and so on. A window of a plane is two registers, out of which one instruction
    fetches 64 bytes; four planes' are zipped back into 64 numbers. A block is `slices` slices of 16 outputs,
    4 at a time.

    `lane` is the buffer of `Slices.lane`, a byte for each weight, as `code` writes them.
    """

    width = 128

    def __init__(self, dtype: str, slices: int) -> None:
        super().__init__(16, 16, dtype)
        self.slices = slices
        # A permutation, two zips and the multiply-add: four of them start in the time of two loads.
        self.steps = 2.0 if dtype == "float32" else 3.0
        self.plane = 0

    @property
    def elements(self) -> int:
        return 16 * self.slices

    @property
    def accumulators(self) -> int:
        return 4

    def code(self, lane: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Lanes as bytes, in the order in which zipping puts them into their slices."""
        groups = lane.reshape(-1, 4, 4, 4).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(groups).reshape(-1).astype(np.uint8)

    def split(self, layout: Layout, x: Any, scratch: Any, plane: int) -> None:
        """Emit the pass that writes the planes, `plane` bytes each, 4 a sample."""
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        self.plane = plane
        with e.serial(layout.shape[0]) as sample:

            def write(element: Any, offset: Any, count: int) -> None:
                value = e.load(x, sample * layout.stride + offset, count)
                value = e.let(T.reinterpret(value, dtype=f"uint8x{4 * count}"))
                for k in range(4):
                    e.store(
                        scratch,
                        (sample * 4 + k) * plane + element,
                        e.shuffle([value], range(k, 4 * count, 4)),
                    )

            each_run(layout, 64, write)

    def load_weights(self, buffer: Any, offset: Expr) -> Any:
        from edgecsi.kernels import emit as e

        groups = []
        for first in range(0, self.elements, 64):
            here = offset + first
            vectors = [FloatUnit.load_weights(self, buffer, here + k)[0] for k in range(0, 64, 16)]
            groups.append((vectors, e.let(e.load(self.lane, here, 64))))
        return groups

    def load_input(self, buffer: Any, offset: Expr) -> Any:
        from edgecsi.kernels import emit as e

        return [
            [e.let(e.load(buffer, offset + k * self.plane + half, 64)) for half in (0, 64)] for k in range(4)
        ]

    def step(self, sums: Sequence[Expr], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Expr]:
        from edgecsi.kernels import emit as e

        result = list(sums)
        for vectors, lane in weights[0]:
            planes = [
                e.intrinsic("llvm.x86.avx512.vpermi2var.qi.512", "uint8x64", low, lane, high)
                for low, high in inputs[0]
            ]
            for k, (w, x) in enumerate(zip(vectors, floats_of(planes), strict=True)):
                result[k] = e.let(result[k] + w * x)
        return result

    def total(self, sums: Sequence[Expr]) -> Expr:
        return (sums[0] + sums[1]) + (sums[2] + sums[3])


class GatherUnit(FloatUnit):
    """Single weights, one of each output, whose inputs are loaded one by one; each output has its own sum.

    `lane` is the buffer of where they lie in a sample's memory.
    """

    width = 1 << 30

    def __init__(self, outputs: int, dtype: str) -> None:
        super().__init__(1, outputs, dtype)
        # Bound by its loads: place and input of each weight, and the weights.
        self.steps = 2.0 * outputs + 1.0

    def load_weights(self, buffer: Any, offset: Expr) -> Any:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        places = [e.let(T.cast(self.lane[offset + k], "int32")) for k in range(self.outputs)]
        return list(zip(super().load_weights(buffer, offset), places, strict=True))

    def load_input(self, buffer: Any, offset: Expr) -> Any:
        return buffer, offset

    def step(self, sums: Sequence[Expr], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Expr]:
        from edgecsi.kernels import emit as e

        buffer, offset = inputs[0]
        # The fences keep LLVM from collecting the sums in a vector, which takes more instructions.
        return [
            e.fence(total) + w * e.fence(buffer[offset + place])
            for total, (w, place) in zip(sums, weights[0], strict=True)
        ]
