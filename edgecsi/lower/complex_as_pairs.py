"""Complex tensors as pairs of real ones: products become real products, a Fourier transform a constant matrix."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgecsi.errors import ModelError, UnsupportedOperators
from edgecsi.lower.refuse import line_of, path_of

if TYPE_CHECKING:
    from torch import Tensor, fx

    from edgecsi.lower.export import Exported

# Operators that only move numbers: real and imaginary parts move alike.
MOVES = (
    "view", "reshape", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "clone", "alias", "cat", "flip",
    "roll", "index", "index_select", "gather", "constant_pad_nd", "repeat", "diagonal", "unfold", "split_with_sizes",
    "transpose", "contiguous", "detach", "sum", "mean", "neg", "_unsafe_view", "tril", "triu", "lift_fresh_copy",
    "split", "unbind", "resolve_conj", "resolve_neg", "as_strided", "cumsum", "copy", "slice_scatter",
    "select_scatter", "diagonal_scatter", "scatter", "index_put", "masked_fill", "fill", "index_copy", "index_add",
)  # fmt: skip
# Which argument of these is a number that is written.
FILLERS = {"constant_pad_nd": 2, "masked_fill": 2, "scatter": 3, "fill": 1}


@dataclass
class Pair:
    """A complex tensor."""

    real: Tensor
    imag: Tensor


def is_complex(node: fx.Node) -> bool:
    """Whether a node gives or takes complex numbers."""
    import torch

    return any(
        isinstance(v, torch.Tensor) and v.is_complex()
        for n in (node, *node.all_input_nodes)
        for v in _values(n.meta.get("val"))
    )


def _values(held: Any) -> tuple[Any, ...]:
    return tuple(held) if isinstance(held, list | tuple) else (held,)


def complex_as_pairs(exported: Exported) -> Exported:
    """The same graph on real tensors.

    Raises:
        ModelError: an input or output is complex.
        UnsupportedOperators: operators on complex numbers that are not known here, all of them.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    from edgecsi.lower.decompose import decompositions
    from edgecsi.lower.refuse import is_effect

    for node in (*exported.inputs, *exported.outputs):
        if node.meta["val"].is_complex():
            raise ModelError(
                f"the tensor {node.name} is complex",
                "inputs and outputs of a library are real numbers",
                "take and return torch.view_as_real(x), with real and imaginary parts along the last axis",
            )
    called = [n for n in exported.graph.nodes if n.op == "call_function" and n not in exported.constants]
    nodes = [n for n in called if not is_effect(n)]
    missing = [
        (_name(n), ", ".join(p for p in (path_of(n), line_of(n)) if p))
        for n in nodes
        if is_complex(n) and _name(n) not in OPERATORS and _name(n) not in MOVES and _name(n) != "getitem"
    ]
    if missing:
        raise UnsupportedOperators(
            list(dict.fromkeys(missing)), "they have no form here for complex numbers",
            "compute real and imaginary parts yourself",
        )  # fmt: skip
    held = [n for n, v in exported.constants.items() if isinstance(v, torch.Tensor)]

    def run(*tensors: Tensor) -> list[Tensor]:
        values: dict[fx.Node, Any] = dict(zip([*exported.inputs, *held], tensors, strict=True))
        for node in exported.graph.nodes:
            if node.op == "call_function" and node not in values and node in wanted:
                with torch.fx.traceback.set_current_meta(node):
                    values[node] = _run(node, values)
        return [values[node] for node in exported.outputs]

    wanted = set(nodes)
    given = [torch.empty(n.meta["val"].shape, dtype=n.meta["val"].dtype) for n in exported.inputs]
    weights = [exported.constants[n] for n in held]
    with torch.no_grad(), torch.fx.traceback.preserve_node_meta():
        traced = make_fx(run, decomposition_table=decompositions(), tracing_mode="fake")(*given, *weights)
    graph = traced.graph
    places = [n for n in graph.nodes if n.op == "placeholder"]
    inputs, rest = places[: len(given)], places[len(given) :]
    constants = dict(zip(rest, weights, strict=True))
    names = {new: exported.names[old] for new, old in zip(rest, held, strict=True) if old in exported.names}
    for node in graph.nodes:
        if node.op == "get_attr":
            constants[node] = getattr(traced, node.target)
    results: Any = next(n for n in graph.nodes if n.op == "output").args[0]
    return type(exported)(graph, inputs, list(results), constants, names)


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target)))


def _run(node: fx.Node, values: dict[Any, Any]) -> Any:
    import torch
    from torch.fx.node import map_arg

    args, kwargs = map_arg((node.args, node.kwargs), lambda n: _paired(values[n]))
    flat = [v for a in (*args, *kwargs.values()) for v in (a if isinstance(a, list | tuple) else (a,))]
    result = node.meta.get("val")
    gives = isinstance(result, torch.Tensor) and result.is_complex()
    if not gives and not any(isinstance(v, Pair | complex) for v in flat):
        return node.target(*args, **kwargs)  # type: ignore[operator]
    name = _name(node)
    if name == "getitem":
        source: Any = args[0]
        return source[args[1]]
    if name in OPERATORS:
        return OPERATORS[name](*args, **kwargs)

    # parts need not lie in memory as the complex tensor did
    target: Any = torch.ops.aten.reshape.default if name in ("view", "_unsafe_view") else node.target

    def part(which: str) -> Any:
        def pick(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(pick(v) for v in value) if not hasattr(value, "_fields") else value
            if isinstance(value, Pair):
                return getattr(value, which)
            if isinstance(value, complex):
                return getattr(value, which)
            if which == "imag" and isinstance(value, torch.Tensor) and value.is_floating_point():
                return torch.zeros_like(value)  # real numbers among complex ones
            return value

        def filler(position: int, value: Any) -> Any:
            """The number that is written, where an operator writes one: it is real."""
            fills = FILLERS.get(name) == position and isinstance(value, int | float)
            return 0.0 if fills and which == "imag" else pick(value)

        given = {k: v for k, v in kwargs.items() if k not in ("dtype", "memory_format")}
        return target(*(filler(n, a) for n, a in enumerate(args)), **{k: pick(v) for k, v in given.items()})

    real, imag = part("real"), part("imag")
    if isinstance(real, list | tuple):
        return [Pair(a, b) for a, b in zip(real, imag, strict=True)]
    return Pair(real, imag)


def _paired(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor) and value.is_complex():
        return Pair(value.real.clone(), value.imag.clone())
    return value


def _parts(value: Any) -> tuple[Any, Any]:
    import torch

    if isinstance(value, Pair):
        return value.real, value.imag
    if isinstance(value, complex):
        return value.real, value.imag
    return value, torch.zeros_like(value) if isinstance(value, torch.Tensor) else 0.0


def _add(a: Any, b: Any, *, alpha: float = 1) -> Any:
    (ar, ai), (br, bi) = _parts(a), _parts(b)
    return Pair(*_broadcast(ar + alpha * br, ai + alpha * bi))


def _broadcast(a: Any, b: Any) -> tuple[Any, Any]:
    import torch

    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a + torch.zeros_like(b), b + torch.zeros_like(a)


def _subtract(a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _add(a, b, alpha=-alpha)


def _multiply(a: Any, b: Any) -> Any:
    for x, other in ((a, b), (b, a)):  # by real numbers
        if not isinstance(x, Pair | complex):
            r, i = _parts(other)
            return Pair(*_broadcast(r * x, i * x))
    (ar, ai), (br, bi) = _parts(a), _parts(b)
    return Pair(ar * br - ai * bi, ar * bi + ai * br)


def _divide(a: Any, b: Any) -> Any:
    if not isinstance(b, Pair | complex):
        r, i = _parts(a)
        return Pair(r / b, i / b)
    (ar, ai), (br, bi) = _parts(a), _parts(b)
    size = br * br + bi * bi
    return Pair((ar * br + ai * bi) / size, (ai * br - ar * bi) / size)


def _bilinear(product: str) -> Callable[..., Any]:
    """Matrix products and convolutions: four real ones (two if one side is real)."""

    def convert(a: Any, b: Any, *rest: Any, **options: Any) -> Any:
        import torch

        op = getattr(torch.ops.aten, product).default
        bias, tail = (rest[0], rest[1:]) if product == "convolution" else (None, rest)
        extra = (None, *tail) if product == "convolution" else tail
        (ar, ai), (br, bi) = _parts(a), _parts(b)
        if not isinstance(a, Pair):
            y = Pair(op(ar, br, *extra, **options), op(ar, bi, *extra, **options))
        elif not isinstance(b, Pair):
            y = Pair(op(ar, br, *extra, **options), op(ai, br, *extra, **options))
        else:
            y = Pair(
                op(ar, br, *extra, **options) - op(ai, bi, *extra, **options),
                op(ar, bi, *extra, **options) + op(ai, br, *extra, **options),
            )
        if bias is not None:
            shape = [1, -1, *[1] * (y.real.dim() - 2)]
            r, i = _parts(bias)
            y = Pair(y.real + r.reshape(shape), y.imag + i.reshape(shape))
        return y

    return convert


def _add_matmul(c: Any, a: Any, b: Any, **_options: Any) -> Any:
    return _add(_bilinear("mm")(a, b), c)


def _absolute(x: Any) -> Any:
    return (x.real * x.real + x.imag * x.imag).sqrt()


def _angle(x: Any) -> Any:
    import torch

    if isinstance(x, Pair):
        return torch.atan2(x.imag, x.real)
    return torch.where(x < 0, math.pi, 0.0)


def _polar(size: Any, angle: Any) -> Any:
    return Pair(size * angle.cos(), size * angle.sin())


def _exponential(x: Any) -> Any:
    return _polar(x.real.exp(), x.imag)


def _logarithm(x: Any) -> Any:
    return Pair(_absolute(x).log(), _angle(x))


def _root(x: Any) -> Any:
    """The one with the imaginary part's sign; its real part is not negative."""
    import torch

    size = _absolute(x)
    real, imag = (((size + x.real).clamp(min=0) / 2).sqrt(), ((size - x.real).clamp(min=0) / 2).sqrt())
    # half of the parts cancel: the larger one is exact, and gives the other
    right = x.real >= 0
    other = x.imag.abs() / (2 * torch.where(size == 0, 1.0, torch.where(right, real, imag)))
    real, imag = torch.where(right, real, other), torch.where(right, other, imag)
    return Pair(real, torch.where(x.imag < 0, -imag, imag))


def _tangent(x: Any) -> Any:
    """tanh, which is 1 where its parts would overflow."""
    real = x.real.clamp(-20, 20)
    size = (2 * real).cosh() + (2 * x.imag).cos()
    return Pair((2 * real).sinh() / size, (2 * x.imag).sin() / size)


def _product(x: Any, dim: int, keepdim: bool = False, **_options: Any) -> Any:
    parts = [Pair(r, i) for r, i in zip(x.real.unbind(dim), x.imag.unbind(dim), strict=True)]
    result = parts[0]
    for part in parts[1:]:
        result = _multiply(result, part)
    return Pair(result.real.unsqueeze(dim), result.imag.unsqueeze(dim)) if keepdim else result


def _cumulative_product(x: Any, dim: int) -> Any:
    import torch

    parts = [Pair(r, i) for r, i in zip(x.real.unbind(dim), x.imag.unbind(dim), strict=True)]
    found = list(itertools.accumulate(parts, _multiply))
    return Pair(torch.stack([p.real for p in found], dim), torch.stack([p.imag for p in found], dim))


def _sigmoid(x: Any) -> Any:
    return _divide(complex(1.0), _add(_exponential(Pair(-x.real, -x.imag)), 1.0))


def _power(x: Any, exponent: Any) -> Any:
    """Small whole powers are products; any other is ``exp(exponent log x)``."""
    import torch

    if isinstance(exponent, int | float) and exponent == int(exponent) and 0 < abs(exponent) <= 16:
        result = x
        for _ in range(int(abs(exponent)) - 1):
            result = _multiply(result, x)
        return result if exponent > 0 else _divide(complex(1.0), result)
    if isinstance(exponent, int | float) and exponent == 0:
        return Pair(torch.ones_like(x.real), torch.zeros_like(x.imag))
    real, imag = (torch.as_tensor(part, dtype=torch.float32) for part in _parts(x))
    return _exponential(_multiply(exponent, _logarithm(Pair(real, imag))))


def _sign(x: Any) -> Any:
    import torch

    size = _absolute(x)
    safe = torch.where(size == 0, 1.0, size)
    return Pair(x.real / safe, x.imag / safe)


def _where(test: Any, a: Any, b: Any) -> Any:
    import torch

    (ar, ai), (br, bi) = _parts(a), _parts(b)
    return Pair(torch.where(test, ar, br), torch.where(test, ai, bi))


def _to_copy(x: Any, **options: Any) -> Any:
    import torch

    dtype = options.get("dtype") or torch.complex64
    if not isinstance(x, Pair):
        real = dtype.to_real()
        return Pair(x.to(real), torch.zeros_like(x, dtype=real))
    if not dtype.is_complex:
        return x.real.to(dtype)
    if dtype == torch.complex32:
        return Pair(x.real.half(), x.imag.half())
    return x


def _along(x: Any, dim: int, matrix: Any) -> Any:
    """Multiply the last axis by a constant complex matrix (real, imaginary), after moving `dim` there."""
    (real, imag), (mr, mi) = _parts(x), matrix
    real, imag = real.movedim(dim, -1), imag.movedim(dim, -1)
    if isinstance(x, Pair):
        y = Pair(real @ mr - imag @ mi, real @ mi + imag @ mr)
    else:
        y = Pair(real @ mr, real @ mi)
    return Pair(y.real.movedim(-1, dim), y.imag.movedim(-1, dim))


def _dft(n: int, columns: int, sign: int, scale: float) -> tuple[Tensor, Tensor]:
    """``exp(sign 2 pi i j k / n)``, computed in double precision."""
    import numpy as np
    import torch

    turns = np.outer(np.arange(n), np.arange(columns)) % n
    matrix = np.exp(sign * 2j * np.pi * turns / n) * scale
    return torch.from_numpy(matrix.real.astype(np.float32)), torch.from_numpy(matrix.imag.astype(np.float32))


def _scale(n: int, normalization: int) -> float:
    """PyTorch's norm modes: 0 none, 1 by sqrt(n), 2 by n."""
    return (1.0, 1 / math.sqrt(n), 1 / n)[normalization]


def _fft_c2c(x: Any, dims: list[int], normalization: int, forward: bool) -> Any:
    for dim in dims:
        n = _parts(x)[0].shape[dim]
        x = _along(x, dim, _dft(n, n, -1 if forward else 1, _scale(n, normalization)))
    return x


def _fft_r2c(x: Any, dims: list[int], normalization: int, onesided: bool) -> Any:
    last = dims[-1]
    n = x.shape[last]
    y = _along(x, last, _dft(n, n // 2 + 1 if onesided else n, -1, _scale(n, normalization)))
    return _fft_c2c(y, dims[:-1], normalization, forward=True)


def _fft_c2r(x: Any, dims: list[int], normalization: int, size: int) -> Any:
    """Half a spectrum to real numbers: every frequency but the first and the last counts twice."""
    import torch

    x = _fft_c2c(x, dims[:-1], normalization, forward=False)
    last = dims[-1]
    half = size // 2 + 1
    real, imag = x.real.movedim(last, -1)[..., :half], x.imag.movedim(last, -1)[..., :half]
    cosine, sine = _dft(size, half, 1, _scale(size, normalization))
    twice = torch.full((half,), 2.0)
    twice[0] = 1.0
    if size % 2 == 0:
        twice[-1] = 1.0
    y = real @ (cosine * twice).T - imag @ (sine * twice).T
    return y.movedim(-1, last)


OPERATORS: dict[str, Callable[..., Any]] = {
    "add": _add, "sub": _subtract, "mul": _multiply, "div": _divide, "mm": _bilinear("mm"), "bmm": _bilinear("bmm"),
    "convolution": _bilinear("convolution"), "addmm": _add_matmul, "abs": _absolute, "angle": _angle,
    "real": lambda x: _parts(x)[0], "imag": lambda x: _parts(x)[1], "complex": Pair, "polar": _polar,
    "_conj": lambda x: Pair(x.real, -x.imag), "conj_physical": lambda x: Pair(x.real, -x.imag),
    "_conj_physical": lambda x: Pair(x.real, -x.imag),
    "_neg_view": lambda x: Pair(-x.real, -x.imag) if isinstance(x, Pair) else -x,
    "view_as_real": lambda x: __import__("torch").stack([x.real, x.imag], -1),
    "view_as_complex": lambda x: Pair(x.select(-1, 0), x.select(-1, 1)),
    "view_as_real_copy": lambda x: __import__("torch").stack([x.real, x.imag], -1),
    "log": _logarithm, "sqrt": _root, "tanh": _tangent, "prod": _product,
    "sin": lambda x: Pair(x.real.sin() * x.imag.cosh(), x.real.cos() * x.imag.sinh()),
    "cos": lambda x: Pair(x.real.cos() * x.imag.cosh(), -(x.real.sin() * x.imag.sinh())),
    "isfinite": lambda x: x.real.isfinite() & x.imag.isfinite(), "isnan": lambda x: x.real.isnan() | x.imag.isnan(),
    "ne": lambda a, b: (_parts(a)[0] != _parts(b)[0]) | (_parts(a)[1] != _parts(b)[1]),
    "log2": lambda x: _multiply(_logarithm(x), 1 / math.log(2)),
    "log10": lambda x: _multiply(_logarithm(x), 1 / math.log(10)),
    "log1p": lambda x: _logarithm(Pair(x.real + 1, x.imag)),
    "expm1": lambda x: _add(_exponential(x), -1.0),
    "sinh": lambda x: Pair(x.real.sinh() * x.imag.cos(), x.real.cosh() * x.imag.sin()),
    "cosh": lambda x: Pair(x.real.cosh() * x.imag.cos(), x.real.sinh() * x.imag.sin()),
    "rsqrt": lambda x: _divide(complex(1.0), _root(x)),
    "sigmoid": _sigmoid, "silu": lambda x: _multiply(x, _sigmoid(x)), "cumprod": _cumulative_product,
    "exp": _exponential, "pow": _power, "sgn": _sign, "where": _where, "_to_copy": _to_copy,
    "reciprocal": lambda x: _divide(complex(1.0), x), "square": lambda x: _multiply(x, x),
    "eq": lambda a, b: (_parts(a)[0] == _parts(b)[0]) & (_parts(a)[1] == _parts(b)[1]),
    "_fft_c2c": _fft_c2c, "_fft_r2c": _fft_r2c, "_fft_c2r": _fft_c2r,
}  # fmt: skip
