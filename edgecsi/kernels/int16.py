"""What kernels in int16 share: codes of a range that is found while they run, and products of pairs."""

from __future__ import annotations

from edgecsi.kernels import reduce
from edgecsi.kernels.base import Expr
from edgecsi.ops.dynamic import TINY16
from edgecsi.target import Target


class Largest:
    """The largest magnitude of the vectors that it sees, as bits.

    As integers, floats without their sign compare as they are large, and what is not finite is above all.
    """

    def __init__(self, lanes: int) -> None:
        from edgecsi.kernels import emit as e

        self.lanes, self.held = lanes, e.registers(lanes, "int32")
        e.store(self.held, 0, e.splat(0, lanes, "int32"))

    def see(self, vector: Expr) -> None:
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        magnitude = as_bits(vector, "int32") & e.splat(0x7FFFFFFF, self.lanes, "int32")
        e.store(self.held, 0, T.max(e.load(self.held, 0, self.lanes), magnitude))

    def bits(self) -> Expr:
        from tvm.tirx.script import builder as T

        return reduce.across(self.vector(), T.max)

    def vector(self) -> Expr:
        """The largest of every lane."""
        from edgecsi.kernels import emit as e

        return e.let(e.load(self.held, 0, self.lanes))


def steps_of(largest: Expr, steps: int) -> tuple[Expr, Expr]:
    """What numbers are multiplied with to become codes, and what a code is worth, from the bits of largest magnitudes;
    see `edgecsi.ops.operators`."""
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    lanes = e.lanes_of(largest)

    def every(value: float) -> Expr:
        return e.splat(value, lanes)

    peak = e.let(T.reinterpret(largest, dtype=e.vector_type("float32", lanes)))
    # Steps over infinity are 0, and not-a-number is no more than anything.
    inverse = e.let(T.Select(peak >= every(float(TINY16)), every(float(steps)) / peak, every(0.0)))
    finite = largest < e.splat(0x7F800000, lanes, "int32")
    return inverse, e.let(T.Select(finite, peak / every(float(steps)), every(float("nan"))))


def add_products(total: Expr, x: Expr, weight: Expr, target: Target) -> Expr:
    """Sums, int32 or uint32 a lane, with the two products of every lane's pairs."""
    from edgecsi.kernels import emit as e

    dtype, lanes = e.type_of(total), e.lanes_of(total)
    pairs = as_bits(x, "int16"), as_bits(weight, "int16")
    if target.dot == "avx2":
        name = {8: "avx2.pmadd.wd", 4: "sse2.pmadd.wd"}[lanes]
        return total + e.intrinsic(f"llvm.x86.{name}", dtype, *pairs)
    return e.intrinsic(f"llvm.x86.avx512.vpdpwssd.{32 * lanes}", dtype, total, *pairs)


def as_bits(vector: Expr, dtype: str) -> Expr:
    """The bits of a vector as elements of another type."""
    import numpy as np
    from tvm.tirx.script import builder as T

    from edgecsi.kernels import emit as e

    old = e.type_of(vector)
    if old.split("x")[0] == dtype:
        return vector
    lanes = e.lanes_of(vector) * np.dtype(old.split("x")[0]).itemsize // np.dtype(dtype).itemsize
    return T.reinterpret(vector, dtype=e.vector_type(dtype, lanes))
