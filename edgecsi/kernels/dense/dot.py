"""Int8 dot products of each instruction set, all with exact int32 sums.

The unit is a vector of weights: 4 consecutive inputs of each of a few outputs, side by side, and 4 codes of
the input, repeated for every output. Unsigned codes are what VNNI multiplies with signed weights; everything
else takes signed codes. The code that stands for 0 is `zero`; ``zero * sum(weights)`` goes off at the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce
from operator import add, or_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.kernels.base import Expr
from edgecsi.kernels.dense.narrow_weights import TOGETHER, pieces
from edgecsi.target import Target


class Dot(ABC):
    """One way to multiply int8.

    Attributes:
        vector: weights in a vector, in bytes.
        accumulators: int32 vectors that one vector of weights is summed into.
        together: blocks of 4 inputs that are multiplied in one step.
        unsigned: codes of the input are 0 … 255, else -128 … 127.
        steps: instructions for one vector of weights, loads left out; for costs.
    """

    vector: int
    accumulators: int = 1
    together: int = 1
    unsigned: bool = False
    steps: float = 1.0

    inputs = 4
    packed = False
    lane: Any = None

    @property
    def outputs(self) -> int:
        """Outputs in a vector of weights."""
        return self.vector // 4

    @property
    def elements(self) -> int:
        """Elements of the weight buffer in a vector."""
        return self.vector

    @property
    def zero(self) -> int:
        """What a signed code is shifted by to become a code of this instruction."""
        return 128 if self.unsigned else 0

    @property
    def lanes(self) -> int:
        """int32 lanes of an accumulator."""
        return self.vector // 4

    acc_dtype = "int32"

    def load_weights(self, buffer: Any, offset: Expr) -> Expr:
        from edgecsi.kernels import emit as e

        return e.let(e.load(buffer, offset, self.vector))

    def load_input(self, buffer: Any, offset: Expr) -> Expr:
        """4 codes in every output's place."""
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        four = T.reinterpret(e.load(buffer, offset, 4), dtype="int32")
        return self.spread(four)

    def spread(self, four: Expr) -> Expr:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        kind = "uint8" if self.unsigned else "int8"
        return T.reinterpret(e.splat(four, self.vector // 4), dtype=f"{kind}x{self.vector}")

    @abstractmethod
    def step(self, sums: Sequence[Expr], weights: Sequence[Expr], inputs: Sequence[Expr]) -> list[Expr]:
        """Add the products of one vector of weights from each of `together` blocks to its accumulators."""

    def total(self, sums: Sequence[Expr]) -> Expr:
        """One int32 per output from the accumulators of a vector."""
        return sums[0]


class Vnni(Dot):
    """vpdpbusd: unsigned codes, signed weights, no saturation."""

    unsigned = True

    def __init__(self, vector: int) -> None:
        self.vector = vector

    def step(self, sums: Sequence[Expr], weights: Sequence[Expr], inputs: Sequence[Expr]) -> list[Expr]:
        from edgecsi.kernels import emit as e

        name = f"llvm.x86.avx512.vpdpbusd.{self.vector * 8}"
        return [e.intrinsic(name, f"int32x{self.lanes}", sums[0], inputs[0], weights[0])]


class NarrowVnni(Vnni):
    """vpdpbusd on weights of 4 to 7 bits, stored as `narrow_weights.pack_bits` does.

    They are multiplied as they lie in the top bits of a byte; the sum is shifted back.
    """

    accumulators = 4
    together = TOGETHER
    packed = True

    def __init__(self, bits: int) -> None:
        super().__init__(64)
        self.bits = bits

    @property
    def elements(self) -> int:
        return self.vector * self.bits // 8

    def load_weights(self, buffer: Any, offset: Expr) -> list[Expr]:
        """The stored vectors; x86 shifts no bytes, so they are seen as 16-bit words."""
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        at = [offset + k * self.vector for k in range(self.bits)]
        return [e.let(T.reinterpret(e.load(buffer, a, self.vector), dtype="uint16x32")) for a in at]

    def step(self, sums: Sequence[Expr], weights: Sequence[Expr], inputs: Sequence[Expr]) -> list[Expr]:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        def masked(word: Expr, mask: int) -> Expr:
            return word & e.splat(mask * 0x0101, 32, "uint16")

        stored, result = weights[0], list(sums)
        values = [masked(word, 256 - (1 << 8 - self.bits)) for word in stored]
        for parts in pieces(self.bits):
            moved = [
                masked(T.shift_left(stored[v], e.splat(by, 32, "uint16")), mask) for v, by, mask in parts
            ]
            values.append(reduce(or_, moved))
        for k, (value, x) in enumerate(zip(values, inputs, strict=True)):
            to = k % self.accumulators
            result[to] = super().step([result[to]], [T.reinterpret(value, dtype="int8x64")], [x])[0]
        return result

    def total(self, sums: Sequence[Expr]) -> Expr:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        return T.shift_right(reduce(add, sums), e.splat(8 - self.bits, self.lanes, "int32"))


class Avx2(Dot):
    """vpmaddubsw on magnitudes: the sign of the code goes to the weight (vpsignb).

    Two products of at most 128 * 127 fit int16, so nothing saturates; but -128 has no positive counterpart,
    so weights of -128 need `Avx2Wide`.
    """

    vector = 32
    steps = 4.0

    def step(self, sums: Sequence[Expr], weights: Sequence[Expr], inputs: Sequence[Expr]) -> list[Expr]:
        from edgecsi.kernels import emit as e

        x, w = inputs[0], weights[0]
        magnitude = e.intrinsic("llvm.abs", "int8x32", x, e.splat(False, 1, "bool"))
        signed = e.intrinsic("llvm.x86.avx2.psign.b", "int8x32", w, x)
        pairs = e.intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16x16", magnitude, signed)
        fours = e.intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", pairs, e.splat(1, 16, "int16"))
        return [sums[0] + fours]


class Avx2Wide(Dot):
    """vpmaddwd on weights widened to int16: exact for every code."""

    vector = 32
    accumulators = 2
    steps = 6.0

    def step(self, sums: Sequence[Expr], weights: Sequence[Expr], inputs: Sequence[Expr]) -> list[Expr]:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        result = []
        for half, total in enumerate(sums):
            w = T.cast(e.part(weights[0], half * 16, 16), "int16x16")
            x = T.cast(e.part(inputs[0], half * 16, 16), "int16x16")
            result.append(total + e.intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", w, x))
        return result

    def total(self, sums: Sequence[Expr]) -> Expr:
        return _add_neighbours(sums)


class Sdot(Dot):
    """ARM's sdot: four signed products into one int32."""

    vector = 16

    def step(self, sums: Sequence[Expr], weights: Sequence[Expr], inputs: Sequence[Expr]) -> list[Expr]:
        from edgecsi.kernels import emit as e

        return [e.intrinsic("llvm.aarch64.neon.sdot", "int32x4", sums[0], weights[0], inputs[0])]


class Neon(Dot):
    """smull, smlal, sadalp: the products of two blocks share an int16, which holds 2 * 128 * 127.

    Weights of -128 could meet codes of -128 twice, so they need `NeonWide`.
    """

    vector = 16
    accumulators = 2
    together = 2
    steps = 3.0

    def step(self, sums: Sequence[Expr], weights: Sequence[Expr], inputs: Sequence[Expr]) -> list[Expr]:
        from edgecsi.kernels import emit as e

        result = []
        for half, total in enumerate(sums):
            products = None
            for w, x in zip(weights, inputs, strict=True):
                eight = e.intrinsic(
                    "llvm.aarch64.neon.smull", "int16x8", e.part(w, half * 8, 8), e.part(x, half * 8, 8)
                )
                products = eight if products is None else products + eight
            result.append(total + e.intrinsic("llvm.aarch64.neon.saddlp", "int32x4", products))
        return result

    def total(self, sums: Sequence[Expr]) -> Expr:
        return _add_neighbours(sums)


class NeonWide(Neon):
    """smull, sadalp, one block at a time: exact for every code."""

    together = 1
    steps = 4.0


def dot_of(target: Target, weight: NDArray[np.int8], rows: int = 16) -> Dot:
    """The dot product for a target, these weights and panels of `rows` outputs.

    Raises:
        ValueError: the target has none.
    """
    lowest = bool(weight.size) and int(weight.min()) == -128
    match target.dot:
        case "avx512_vnni":
            return Vnni(min(64, rows * 4))
        case "avx_vnni":
            return Vnni(min(32, rows * 4))
        case "avx2":
            return Avx2Wide() if lowest else Avx2()
        case "sdot":
            return Sdot()
        case "neon":
            return NeonWide() if lowest else Neon()
    raise ValueError(f"{target.id} has no int8 dot product")


def _add_neighbours(sums: Sequence[Expr]) -> Expr:
    from edgecsi.kernels import emit as e

    lanes = 2 * e.lanes_of(sums[0])
    return e.shuffle(sums, range(0, lanes, 2)) + e.shuffle(sums, range(1, lanes, 2))
