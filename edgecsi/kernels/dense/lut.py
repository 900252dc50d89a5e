"""Weights that are indices into a table: 4 bits into one of 16 that stays in registers, 8 bits into one of 256."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Expr
from edgecsi.kernels.dense.units import FloatUnit, floats_of
from edgecsi.target import Target


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

    def prepare(self, named: Mapping[str, Any]) -> None:
        from edgecsi.kernels import emit as e

        table = named["table"]
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

    def prepare(self, named: Mapping[str, Any]) -> None:
        from edgecsi.kernels import emit as e

        table = named["table"]
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
