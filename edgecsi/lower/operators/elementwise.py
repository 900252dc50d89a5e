"""Operators that compute number by number. Types are promoted as in PyTorch before Relax sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgecsi.codegen.vector_math import is_nan

if TYPE_CHECKING:
    from edgecsi.lower.import_torch import Call

FLOATS = ("float32", "float64")


def computed(dtype: str) -> str:
    """The type a tensor of `dtype` is held in: half precision lives in float32."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def operands(call: Call, *names: str) -> tuple[Any, str]:
    """Tensors and numbers in the common type PyTorch gives them, and that type."""
    import torch

    text = computed(str(torch.result_type(*(call.meta(n) for n in names))).removeprefix("torch."))
    return [call.cast(call[name], text) for name in names], text


def _unary(name: str) -> Callable[[Call], Any]:
    """Floating-point functions: integers become float32 first."""

    def convert(call: Call) -> Any:
        from tvm import relax

        op = getattr(relax.op, name, None) or getattr(relax.op.nn, name)
        return call.emit(op(call.cast(call["self"], computed(call.dtype))))

    return convert


def _same(name: str) -> Callable[[Call], Any]:
    """Functions that keep the type of their argument."""

    def convert(call: Call) -> Any:
        from tvm import relax

        op = getattr(relax.op, name, None) or getattr(relax.op.nn, name)
        return call.emit(op(call["self"]))

    return convert


def _rounding(name: str) -> Callable[[Call], Any]:
    """Integers are whole already."""

    def convert(call: Call) -> Any:
        from tvm import relax

        if call.dtype not in (*FLOATS, "float16", "bfloat16"):
            return call["self"]
        return call.emit(getattr(relax.op, name)(call["self"]))

    return convert


def _binary(name: str) -> Callable[[Call], Any]:
    def convert(call: Call) -> Any:
        from tvm import relax

        (a, b), dtype = operands(call, "self", "other")
        if dtype != "bool":
            return call.emit(getattr(relax.op, name)(a, b))
        # LLVM takes the order of single bits for that of floating-point numbers
        y = call.emit(getattr(relax.op, name)(call.cast(a, "int8"), call.cast(b, "int8")))
        return call.cast(y, "bool")

    return convert


def _added(name: str, *, reverse: bool = False) -> Callable[[Call], Any]:
    """``self + alpha * other`` and ``self - alpha * other``."""

    def convert(call: Call) -> Any:
        from tvm import relax

        (a, b), dtype = operands(call, "self", "other")
        alpha = call["alpha"] if call["alpha"] is not None else 1
        if alpha != 1:
            scaled = a if reverse else b
            scaled = call.emit(relax.op.multiply(scaled, call.cast(alpha, dtype)))
            a, b = (scaled, b) if reverse else (a, scaled)
        if reverse:
            a, b = b, a
        if dtype == "bool":  # + is or
            return call.emit(relax.op.logical_or(a, b))
        return call.emit(getattr(relax.op, name)(a, b))

    return convert


def _negative(call: Call) -> Any:
    from tvm import relax

    x = call["self"]
    if call.dtype == "uint8":  # 0 - x, modulo 256
        return call.emit(relax.op.subtract(call.cast(0, "uint8"), x))
    return call.emit(relax.op.negative(x))


def _multiply(call: Call) -> Any:
    from tvm import relax

    (a, b), dtype = operands(call, "self", "other")
    return call.emit((relax.op.logical_and if dtype == "bool" else relax.op.multiply)(a, b))


def elementwise(call: Call, function: Callable[..., Any], *tensors: Any, name: str) -> Any:
    """A function of single numbers, on tensors that are broadcast."""
    from tvm import te

    shape = call.shape

    def define(*given: Any) -> Any:
        def at(tensor: Any, indices: Any) -> Any:
            own = list(indices)[len(indices) - len(tensor.shape) :]
            return tensor(*(0 if int(n) == 1 else i for i, n in zip(own, tensor.shape, strict=True)))

        return te.compute(shape, lambda *i: function(*(at(t, i) for t in given)), name=name)

    return call.te(define, *tensors, name=name)


def _compare(name: str) -> Callable[[Call], Any]:
    """A tensor compared with itself asks where it is not a number; TVM would answer at once, and wrongly."""

    def convert(call: Call) -> Any:
        from tvm import tirx

        x = call["self"]
        itself = name in ("equal", "not_equal") and call.arguments["self"] is call.arguments["other"]
        if not itself or str(x.ty.dtype) not in FLOATS:
            return _binary(name)(call)
        return elementwise(
            call, lambda v: is_nan(v) if name == "not_equal" else tirx.Not(is_nan(v)), x, name=name
        )

    return convert


def _logical(name: str) -> Callable[[Call], Any]:
    def convert(call: Call) -> Any:
        from tvm import relax

        values = [call.cast(call[n], "bool") for n in ("self", "other") if n in call.arguments]
        return call.emit(getattr(relax.op, name)(*values))

    return convert


def _bitwise(name: str) -> Callable[[Call], Any]:
    """On booleans the logical operation."""

    def convert(call: Call) -> Any:
        from tvm import relax

        names = [n for n in ("self", "other") if n in call.arguments]
        if len(names) == 2:
            values, dtype = operands(call, *names)
        else:
            values, dtype = [call["self"]], call.dtype
        prefix = "logical" if dtype == "bool" else "bitwise"
        return call.emit(getattr(relax.op, f"{prefix}_{name}")(*values))

    return convert


def _clamp(call: Call) -> Any:
    from tvm import relax

    dtype = computed(call.dtype)
    x = call.cast(call["self"], dtype)
    low, high = call.arguments.get("min"), call.arguments.get("max")
    number = all(not isinstance(v, relax.Expr) for v in (low, high))
    if number and dtype == "float32":
        big = float("inf")
        return call.emit(
            relax.op.clip(x, -big if low is None else float(low), big if high is None else float(high))
        )
    for limit, op in ((low, relax.op.maximum), (high, relax.op.minimum)):
        if limit is not None:
            x = call.emit(op(x, call.cast(limit, dtype)))
    return x


def _where(call: Call) -> Any:
    from tvm import relax

    (a, b), _ = operands(call, "self", "other")
    return call.emit(relax.op.where(call.cast(call["condition"], "bool"), a, b))


def _masked_fill(call: Call) -> Any:
    from tvm import relax

    dtype = computed(call.dtype)
    return call.emit(
        relax.op.where(call["mask"], call.cast(call["value"], dtype), call.cast(call["self"], dtype))
    )


def _expm1_of(x: Any, dtype: str) -> Any:
    """exp(x) - 1 without losing small x: 2 tanh(x/2) / (1 - tanh(x/2))."""
    from tvm import te, tirx

    half, one, two = (tirx.const(v, dtype) for v in (0.5, 1.0, 2.0))
    t = te.tanh(x * half)
    return tirx.Select(tirx.all(x > -half, x < half), two * t / (one - t), te.exp(x) - one)


def _log1p_of(x: Any, dtype: str) -> Any:
    """log(1 + x) without losing small x, whose series takes four terms."""
    from tvm import te, tirx

    one, limit = tirx.const(1.0, dtype), tirx.const(1e-2, dtype)
    half, third, quarter = (tirx.const(1 / n, dtype) for n in (2, 3, 4))
    small = x * (one - x * (half - x * (third - x * quarter)))
    return tirx.Select(tirx.all(x > -limit, x < limit), small, te.log(one + x))


def _expm1(call: Call) -> Any:
    dtype = computed(call.dtype)
    return elementwise(call, lambda x: _expm1_of(x, dtype), call.cast(call["self"], dtype), name="expm1")


def _log1p(call: Call) -> Any:
    dtype = computed(call.dtype)
    return elementwise(call, lambda x: _log1p_of(x, dtype), call.cast(call["self"], dtype), name="log1p")


def _elu(call: Call) -> Any:
    """ELU, and with a scale SELU."""
    from tvm import tirx

    dtype = computed(call.dtype)
    up, down, inner = (
        tirx.const(float(v), dtype)
        for v in (call["scale"], call["alpha"] * call["scale"], call["input_scale"])
    )
    zero = tirx.const(0.0, dtype)
    return elementwise(
        call,
        lambda x: tirx.Select(x > zero, x * up, _expm1_of(x * inner, dtype) * down),
        call["self"],
        name="elu",
    )


def _celu(call: Call) -> Any:
    from tvm import tirx

    dtype = computed(call.dtype)
    alpha, zero = tirx.const(float(call["alpha"]), dtype), tirx.const(0.0, dtype)
    return elementwise(
        call,
        lambda x: tirx.Select(x > zero, x, _expm1_of(x / alpha, dtype) * alpha),
        call["self"],
        name="celu",
    )


def _softplus(call: Call) -> Any:
    from tvm import te, tirx

    dtype = computed(call.dtype)
    beta, threshold = (tirx.const(float(call[n]), dtype) for n in ("beta", "threshold"))

    def value(x: Any) -> Any:
        return tirx.Select(x * beta > threshold, x, _log1p_of(te.exp(x * beta), dtype) / beta)

    return elementwise(call, value, call["self"], name="softplus")


def _leaky(call: Call) -> Any:
    from tvm import relax

    return call.emit(relax.op.nn.leakyrelu(call["self"], call["negative_slope"]))


def _gelu(call: Call) -> Any:
    from tvm import relax

    return call.emit(
        (relax.op.nn.gelu_tanh if call["approximate"] == "tanh" else relax.op.nn.gelu)(call["self"])
    )


def _sign(call: Call) -> Any:
    from tvm import relax

    dtype = computed(call.dtype)
    above, below = (
        call.cast(call.emit(op(call["self"], call.cast(0, dtype))), dtype)
        for op in (relax.op.greater, relax.op.less)
    )
    return call.emit(relax.op.subtract(above, below))


def _arctan2(call: Call) -> Any:
    from tvm import relax

    (a, b), _ = operands(call, "self", "other")
    return call.emit(relax.op.atan2(a, b))


def _not_finite(name: str) -> Callable[[Call], Any]:
    def convert(call: Call) -> Any:
        x = call["self"]
        dtype = str(x.ty.dtype)
        if dtype not in FLOATS:
            x = call.cast(x, "float32")
            dtype = "float32"

        def test(v: Any) -> Any:
            from tvm import tirx

            big = tirx.const(float("inf"), dtype)
            if name == "isnan":
                return is_nan(v)
            infinite = tirx.any(tirx.EQ(v, big), tirx.EQ(v, -big))
            return infinite if name == "isinf" else tirx.Not(tirx.any(infinite, is_nan(v)))

        return elementwise(call, test, x, name=name)

    return convert


def _to(call: Call) -> Any:
    """Conversions of type. A float that becomes an integer is cut, as in C."""
    from tvm import relax

    dtype = computed(call.dtype)
    x = call["self"]
    if dtype == "bool" and str(x.ty.dtype) != "bool":
        return call.emit(relax.op.not_equal(x, call.cast(0, str(x.ty.dtype))))
    if str(x.ty.dtype) in FLOATS and dtype in ("int8", "uint8", "int16"):
        x = call.cast(x, "int32")  # too large a number keeps its low bits; by itself that is undefined
    return call.cast(x, dtype)


TABLE: dict[str, Callable[[Call], Any]] = {
    **{f"{n}.default": _unary(n) for n in (
        "acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "sin", "sinh", "tan", "tanh", "exp", "erf",
        "log", "sqrt", "rsqrt", "sigmoid", "silu",
    )},
    **{f"{n}.default": _same(n) for n in ("abs", "relu")},
    "neg.default": _negative,
    **{f"{n}.default": _rounding(n) for n in ("ceil", "floor", "trunc")},
    "expm1.default": _expm1,
    "elu.default": _elu,
    "celu.default": _celu,
    "softplus.default": _softplus,
    "log1p.default": _log1p,
    "sign.default": _sign,
    "leaky_relu.default": _leaky,
    "gelu.default": _gelu,
    "add.Tensor": _added("add"),
    "add.Scalar": _added("add"),
    "sub.Tensor": _added("subtract"),
    "sub.Scalar": _added("subtract"),
    "rsub.Scalar": _added("subtract", reverse=True),
    "rsub.Tensor": _added("subtract", reverse=True),
    "mul.Tensor": _multiply,
    "mul.Scalar": _multiply,
    "maximum.default": _binary("maximum"),
    "minimum.default": _binary("minimum"),
    "atan2.default": _arctan2,
    **{f"clamp.{o}": _clamp for o in ("default", "Tensor")},
    **{f"clamp_{m}.{o}": _clamp for m in ("min", "max") for o in ("default", "Tensor")},
    "where.self": _where,
    "where.ScalarSelf": _where,
    "where.ScalarOther": _where,
    **{f"masked_fill.{o}": _masked_fill for o in ("Scalar", "Tensor")},
    **{f"{n}.{o}": _compare(op) for o in ("Tensor", "Scalar") for n, op in (
        ("eq", "equal"), ("ne", "not_equal"), ("gt", "greater"), ("ge", "greater_equal"), ("lt", "less"),
        ("le", "less_equal"),
    )},
    **{f"logical_{n}.default": _logical(f"logical_{n}") for n in ("and", "or", "xor", "not")},
    **{f"bitwise_{n}.{o}": _bitwise(n) for n in ("and", "or", "xor") for o in ("Tensor", "Scalar")},
    **{f"__{n}__.{o}": _bitwise(n) for n in ("and", "or", "xor") for o in ("Tensor", "Scalar")},
    "bitwise_not.default": _bitwise("not"),
    **{f"__{n[0]}shift__.{o}": _binary(f"{n}_shift") for n in ("left", "right") for o in ("Tensor", "Scalar")},
    **{f"bitwise_{n}_shift.{o}": _binary(f"{n}_shift") for n in ("left", "right") for o in ("Tensor", "Tensor_Scalar")},
    **{f"{n}.default": _not_finite(n) for n in ("isnan", "isinf", "isfinite")},
    "_to_copy.default": _to,
}  # fmt: skip
