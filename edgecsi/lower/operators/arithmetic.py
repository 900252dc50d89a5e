"""Quotients, remainders, powers and rounding, as PyTorch defines them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgecsi.lower.operators.elementwise import FLOATS, computed, elementwise, operands

if TYPE_CHECKING:
    from edgecsi.lower.import_torch import Call


def _divide(call: Call) -> Any:
    """True division: integers become float32. With a rounding mode: see `_quotient`."""
    from tvm import relax

    (a, b), dtype = operands(call, "self", "other")
    mode = call.arguments.get("rounding_mode")
    if mode is not None:
        return _quotient(call, a, b, dtype, mode)
    if dtype not in FLOATS:
        a, b = (call.cast(v, computed(call.dtype)) for v in (a, b))
    return call.emit(relax.op.divide(a, b))


def _quotient(call: Call, a: Any, b: Any, dtype: str, mode: str) -> Any:
    """Quotients rounded down or towards zero. Of floats the remainder is exact, so the quotient is a whole number
    before it is rounded (the way PyTorch does it)."""
    from tvm import te, tirx

    if dtype not in FLOATS:
        function = tirx.floordiv if mode == "floor" else tirx.truncdiv
        return elementwise(call, lambda x, y: function(x, y), a, b, name=f"{mode}_divide")

    def divide(x: Any, y: Any) -> Any:
        if mode == "trunc":
            return te.trunc(x / y)
        rest = _remainder(x, y, dtype)
        return tirx.Select(y == tirx.const(0, dtype), x / y, tirx.nearbyint((x - rest) / y))

    return elementwise(call, divide, a, b, name=f"{mode}_divide")


def _floor_divide(call: Call) -> Any:
    (a, b), dtype = operands(call, "self", "other")
    return _quotient(call, a, b, dtype, "floor")


def _fmod(x: Any, y: Any, dtype: str) -> Any:
    """With the sign of the dividend. In double precision the quotient of two floats is cut at the right whole number,
    and nothing of the rest is lost."""
    from tvm import te, tirx

    wide_x, wide_y = tirx.Cast("float64", x), tirx.Cast("float64", y)
    rest = wide_x - wide_y * te.trunc(wide_x / wide_y)
    big = tirx.const(float("inf"), "float64")
    endless = tirx.all(tirx.any(tirx.EQ(wide_y, big), tirx.EQ(wide_y, -big)), wide_x < big, wide_x > -big)
    return tirx.Cast(dtype, tirx.Select(endless, wide_x, rest))


def _remainder(x: Any, y: Any, dtype: str) -> Any:
    """With the sign of the divisor."""
    from tvm import tirx

    rest = _fmod(x, y, dtype)
    zero = tirx.const(0, dtype)
    other_side = tirx.any(tirx.all(rest < zero, y > zero), tirx.all(rest > zero, y < zero))
    return tirx.Select(other_side, rest + y, rest)


def _modulo(*, floor: bool) -> Callable[[Call], Any]:
    def convert(call: Call) -> Any:
        from tvm import tirx

        (a, b), dtype = operands(call, "self", "other")

        def rest(x: Any, y: Any) -> Any:
            if dtype in FLOATS:
                return _remainder(x, y, dtype) if floor else _fmod(x, y, dtype)
            return tirx.floormod(x, y) if floor else tirx.truncmod(x, y)

        return elementwise(call, rest, a, b, name="remainder")

    return convert


def _power(call: Call) -> Any:
    """Whole and half exponents without the library's pow, which is slow and needs a positive base."""
    from tvm import relax

    number = call["exponent"]
    x = call["self"]
    if isinstance(number, int | float) and isinstance(x, relax.Expr):
        dtype = computed(call.dtype)
        x = call.cast(x, dtype)
        if number == int(number) and 0 <= abs(number) <= 8 and (number >= 0 or dtype in FLOATS):
            return _whole_power(call, x, int(number), dtype)
        if number in (0.5, -0.5):
            return call.emit((relax.op.sqrt if number > 0 else relax.op.rsqrt)(x))
        return call.emit(relax.op.power(x, call.cast(number, dtype)))
    (a, b), dtype = operands(call, "self", "exponent")
    if dtype in FLOATS:
        return call.emit(relax.op.power(a, b))
    wide = call.emit(relax.op.power(call.cast(a, "float64"), call.cast(b, "float64")))
    return call.cast(call.emit(relax.op.round(wide)), dtype)


def _whole_power(call: Call, x: Any, exponent: int, dtype: str) -> Any:
    from tvm import relax

    if exponent == 0:
        return call.emit(
            relax.op.add(call.emit(relax.op.multiply(x, call.cast(0, dtype))), call.cast(1, dtype))
        )
    result = x
    for bit in bin(abs(exponent))[3:]:
        result = call.emit(relax.op.multiply(result, result))
        if bit == "1":
            result = call.emit(relax.op.multiply(result, x))
    return result if exponent > 0 else call.emit(relax.op.divide(call.cast(1.0, dtype), result))


def _nearest_even(call: Call) -> Any:
    """PyTorch rounds halves to even, Relax away from zero."""
    from tvm import tirx

    if call.dtype not in (*FLOATS, "float16", "bfloat16"):
        return call["self"]
    digits = call.arguments.get("decimals") or 0
    scale = tirx.const(10.0 ** abs(digits), computed(call.dtype))

    def nearest(x: Any) -> Any:
        if digits == 0:
            return tirx.nearbyint(x)
        return tirx.nearbyint(x * scale) / scale if digits > 0 else tirx.nearbyint(x / scale) * scale

    return elementwise(call, nearest, call["self"], name="round")


TABLE: dict[str, Callable[[Call], Any]] = {
    "round.default": _nearest_even,
    "round.decimals": _nearest_even,
    **{f"div.{o}": _divide for o in ("Tensor", "Scalar", "Tensor_mode", "Scalar_mode")},
    "floor_divide.default": _floor_divide,
    **{f"remainder.{o}": _modulo(floor=True) for o in ("Tensor", "Scalar")},
    **{f"fmod.{o}": _modulo(floor=False) for o in ("Tensor", "Scalar")},
    **{f"pow.{o}": _power for o in ("Tensor_Scalar", "Tensor_Tensor", "Scalar")},
}  # fmt: skip
