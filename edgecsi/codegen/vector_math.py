"""exp, tanh, sigmoid, erf and softplus as polynomials on vectors: libm has scalars only, called lane by lane.

All functions take a float32 TIR expression of any number of lanes and return one of the same type, built of
additions, multiplications, divisions, comparisons and bit casts only. Errors stay below 3 units in the last
place over all of float32; infinities and NaN give what libm gives. Coefficients are weighted minimax fits
(Lawson's iteration) made for this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

Expr = Any  # a TIR expression; tvm has no type stubs

LOG2_E = 1.4426950408889634
# ln 2 in two pieces: the first has few enough bits that its product with an exponent is exact.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
# Adding 1.5 * 2^23 leaves the nearest integer in the low bits of a float.
ROUNDER = 12582912.0

# (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2
EXP = (
    0.4999999403953552,
    0.16666515171527863,
    0.04166845604777336,
    0.008369418792426586,
    0.0013813142431899905,
)
# (tanh(x) / x - 1) / z in z = x^2 on |x| < 0.625
TANH = (
    -0.3333328068256378,
    0.13331441581249237,
    -0.05373971164226532,
    0.020639078691601753,
    -0.005704978480935097,
)
# erf(x) / x - 1 in z = x^2 on |x| < 0.95
ERF = (
    0.12837916612625122, -0.37612631916999817, 0.11283663660287857, -0.026857705786824226,
    0.005196951795369387, -0.0008097702520899475, 8.185090700862929e-05,
)  # fmt: skip
# log(erfc(t)) on 0.9 < t < 3.95, where erf reaches 1
LOG_ERFC = (
    -0.00016643933486193419, -1.127797245979309, -0.6369760036468506, -0.10411374270915985,
    0.022315246984362602, -0.0030654994770884514, 0.0001982206740649417,
)  # fmt: skip
# (atanh(s) / s - 1) / z in z = s^2 on 0 <= s <= 1/3
ATANH = (0.3333320915699005, 0.2001076340675354, 0.14000901579856873, 0.1400599628686905)


def exp(x: Expr) -> Expr:
    """e to the power of x; overflows to infinity and underflows through the subnormals to 0."""

    def scaled(mantissa: Expr, exponent: Expr) -> Expr:
        def twice(exponent: Expr) -> Expr:
            # Two factors, since 2^128 and 2^-149 are no normal floats.
            half = exponent >> _int(1, exponent)
            return _let(half, lambda half: mantissa * _power(half) * _power(exponent - half))

        return _let(exponent, twice)

    return _exp_parts(_minimum(_like(89, x), _maximum(_like(-104, x), x)), scaled)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + exp(-x)), exact to the last places at both ends."""

    def of(x: Expr) -> Expr:
        def ratio(e: Expr) -> Expr:
            return _select(x < _like(0, x), e, _like(1, e)) / (_like(1, e) + e)

        return _let(exp(-_absolute(x)), ratio)

    return _let(x, of)


def tanh(x: Expr) -> Expr:
    """Hyperbolic tangent."""

    def of(x: Expr) -> Expr:
        def both(t: Expr) -> Expr:
            small = _let(x * x, lambda z: x + x * z * _polynomial(TANH, z))
            e = _exp_normal(t + t)
            large = _like(1, x) - _like(2, x) / (e + _like(1, x))
            return _select(t < _like(0.625, x), small, _copysign(large, x))

        # tanh(9.1) is 1 in float32.
        return _let(_minimum(_like(9.1, x), _absolute(x)), both)

    return _let(x, of)


def erf(x: Expr) -> Expr:
    """Error function."""

    def of(x: Expr) -> Expr:
        def both(t: Expr) -> Expr:
            small = _let(x * x, lambda z: x + x * _polynomial(ERF, z))
            large = _like(1, x) - _exp_normal(_polynomial(LOG_ERFC, t))
            return _select(t < _like(0.92, x), small, _copysign(large, x))

        return _let(_minimum(_like(3.95, x), _absolute(x)), both)

    return _let(x, of)


def softplus(x: Expr) -> Expr:
    """log(1 + exp(x))."""

    def of(x: Expr) -> Expr:
        def log1p(e: Expr) -> Expr:
            return _let(
                e / (_like(2, e) + e), lambda s: _let(s * s, lambda z: s + s * z * _polynomial(ATANH, z))
            )

        # log(1 + e) = 2 atanh(e / (2 + e))
        return _maximum(_like(0, x), x) + _like(2, x) * _let(exp(-_absolute(x)), log1p)

    return _let(x, of)


@cache
def use_vector_math() -> None:
    """Have TVM compute its own exp, tanh, sigmoid and erf of float32, scalar or vector, by polynomials."""
    import tvm
    from tvm import tirx

    # TVM expects a call of libm's erf, which has scalars only, and so would leave loops with it as loops.
    tvm.ir.Op.get("tirx.erf").set_attr("TVectorizable", True)

    def rule(ours: Callable[[Expr], Expr], libm: str) -> Callable[[Expr], Expr]:
        def lower(call: Expr) -> Expr:
            x = call.args[0]
            if str(x.ty).startswith("float32"):
                return ours(x)
            if libm == "sigmoid":
                return 1 / (1 + tirx.exp(-x))
            return _lane_by_lane(libm, x)

        return lower

    for name, function in {"exp": exp, "tanh": tanh, "sigmoid": sigmoid, "erf": erf}.items():
        tirx.register_intrin_lowering(f"tirx.{name}", target="llvm", f=rule(function, name), level=20)


def _lane_by_lane(libm: str, x: Expr) -> Expr:
    """A function of libm, which has scalars only: a call with a vector would return what happens to lie there."""
    from tvm import tirx

    scalar, _, lanes = str(x.ty).partition("x")
    if not lanes:
        return tirx.call_pure_extern(scalar, libm, x)

    def each(x: Expr) -> Expr:
        numbers = range(int(lanes))
        parts = [tirx.call_pure_extern(scalar, libm, tirx.Shuffle([x], [i])) for i in numbers]
        return tirx.Shuffle(parts, list(numbers))

    return _let(x, each)


def is_nan(x: Expr) -> Expr:
    """Whether numbers are none, fp32 or fp64. By their bits, since TVM takes ``x != x`` for false."""
    from tvm import tirx

    bits, rest, infinity = (
        ("int64", (1 << 63) - 1, 0x7FF << 52)
        if "float64" in str(x.ty)
        else ("int32", (1 << 31) - 1, 0xFF << 23)
    )
    kind = _typed(bits, x)
    return (tirx.reinterpret(kind, x) & tirx.const(rest, kind)) > tirx.const(infinity, kind)


def _exp_parts(x: Expr, then: Callable[[Expr, Expr], Expr]) -> Expr:
    """`then(mantissa, exponent)` with exp(x) = mantissa * 2^exponent, for |x| < 128."""

    def split(x: Expr) -> Expr:
        def of(shifted: Expr) -> Expr:
            n = shifted - _like(ROUNDER, x)
            exponent = _bits(shifted) - _bits(_like(ROUNDER, x))

            def mantissa(r: Expr) -> Expr:
                return then(_like(1, x) + (r + r * r * _polynomial(EXP, r)), exponent)

            return _let(x - n * _like(LN2_HIGH, x) - n * _like(LN2_LOW, x), mantissa)

        return _let(x * _like(LOG2_E, x) + _like(ROUNDER, x), of)

    return _let(x, split)


def _exp_normal(x: Expr) -> Expr:
    """exp(x) for -87 < x < 88."""
    return _exp_parts(x, lambda mantissa, exponent: mantissa * _power(exponent))


def _power(exponent: Expr) -> Expr:
    """2^exponent as a float of lanes of int32, -126 to 127."""
    from tvm import tirx

    return tirx.reinterpret(
        _typed("float32", exponent), (exponent + _int(127, exponent)) << _int(23, exponent)
    )


def _polynomial(coefficients: Sequence[float], x: Expr) -> Expr:
    """c[0] + c[1] x + c[2] x^2 + …, Horner's rule."""
    result = _like(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        result = result * x + _like(c, x)
    return result


def _let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """Name a value, so that it is computed once."""
    from tvm import tirx

    name = tirx.Var("v", value.ty)
    return tirx.Let(name, value, body(name))


def _typed(dtype: str, like: Expr) -> str:
    """`dtype` with as many lanes as `like`."""
    return dtype + "".join(str(like.ty).partition("x")[1:])


def _like(value: float, x: Expr) -> Expr:
    """A float constant in all lanes of `x`."""
    from tvm import tirx

    return tirx.const(value, str(x.ty))


def _int(value: int, x: Expr) -> Expr:
    from tvm import tirx

    return tirx.const(value, _typed("int32", x))


def _bits(x: Expr) -> Expr:
    from tvm import tirx

    return tirx.reinterpret(_typed("int32", x), x)


def _absolute(x: Expr) -> Expr:
    from tvm import tirx

    return tirx.reinterpret(str(x.ty), _bits(x) & _int(0x7FFFFFFF, x))


def _copysign(size: Expr, sign: Expr) -> Expr:
    """`size`, which is not negative, with the sign of `sign`."""
    from tvm import tirx

    return tirx.reinterpret(str(size.ty), _bits(size) | (_bits(sign) & _int(-0x80000000, sign)))


def _minimum(bound: Expr, x: Expr) -> Expr:
    """The smaller; NaN if x is NaN, which the order of the operands decides."""
    from tvm import tirx

    return tirx.min(bound, x)


def _maximum(bound: Expr, x: Expr) -> Expr:
    from tvm import tirx

    return tirx.max(bound, x)


def _select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    from tvm import tirx

    return tirx.Select(condition, yes, no)
