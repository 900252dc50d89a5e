"""Small words for writing kernels with TVM's IR builder: vectors, functions, halos, epilogues.

A kernel's `emit` is a Python program that writes TIR. Python loops unroll, ``with serial(...)`` loops stay loops:

>>> from edgecsi.ops.operators import Elementwise
>>> op = Elementwise(x=Layout((1, 64)), y=Layout((1, 64)))
>>> with function(op) as (written, (x, y)), serial(4) as row:
...     store(y, row * 16, load(x, row * 16, 16) * splat(2.0, 16))
>>> [parameter.name for parameter in written.done().params]
['x0', 'y']
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from edgecsi.codegen import vector_math
from edgecsi.kernels.base import Expr
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Half, Op, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

FENCE = "llvm.arithmetic.fence"


class Function:
    """A function being written; `result` holds it after the ``with`` block."""

    def __init__(self) -> None:
        self.result: PrimFunc | None = None

    def done(self) -> PrimFunc:
        assert self.result is not None
        return self.result


@contextmanager
def function(
    op: Op, constants: Sequence[NDArray[Any]] = (), scratch: int = 0
) -> Iterator[tuple[Function, list[Any]]]:
    """Open a function with the parameters every kernel has: inputs, constants, output, scratch.

    Yields:
        the function (call `.done()` after the block) and its parameter buffers, 1-D, in order.
    """
    shapes = [(f"x{i}", lay.size, lay.dtype) for i, lay in enumerate(op.inputs)]
    shapes += [(f"c{i}", int(np.asarray(c).size), str(np.asarray(c).dtype)) for i, c in enumerate(constants)]
    shapes.append(("y", op.y.size, op.y.dtype))
    if scratch:
        shapes.append(("scratch", scratch, "uint8"))
    holder = Function()
    with IRBuilder() as builder, T.prim_func():
        T.func_name("kernel")
        buffers = [T.arg(name, T.buffer((max(size, 1),), dtype)) for name, size, dtype in shapes]
        yield holder, buffers
    holder.result = builder.get()


def serial(extent: Expr) -> Any:
    """A loop that stays a loop: ``with serial(n) as i``. One iteration is no loop."""
    return T.serial(0, extent)


def registers(count: int, dtype: str = "float32") -> Any:
    """A small local array; with constant indices LLVM keeps it in registers."""
    return T.alloc_buffer((count,), dtype, scope="local")


def load(buffer: Any, offset: Expr, lanes: int) -> Expr:
    """`lanes` consecutive elements as a vector (a scalar if 1)."""
    return buffer[offset] if lanes == 1 else buffer[T.ramp(offset, 1, lanes)]


def store(buffer: Any, offset: Expr, value: Expr) -> None:
    """Store a vector at consecutive elements."""
    lanes = lanes_of(value)
    T.buffer_store(buffer, value, [offset if lanes == 1 else T.ramp(offset, 1, lanes)])


def prefetch(buffer: Any, offset: Expr) -> None:
    """Ask for the line of the cache with this element; it may lie behind the end."""
    _prefetch(T.address_of(buffer[offset]))


def _prefetch(where: Expr) -> None:
    read, soon, data = (tirx.const(value, "int32") for value in (0, 3, 1))
    T.evaluate(
        T.call_llvm_intrin(T.llvm_lookup_intrinsic_id("llvm.prefetch"), where, read, soon, data, dtype="void")
    )


def align_stack(target: Target) -> None:
    """Have registers that are kept on the stack lie at multiples of their size.

    On x86 LLVM aligns the stack only if it knows early that the function has a frame, and asking for its address
    says so. Otherwise it depends on the caller whether half of them lie in two lines of the cache, which takes
    up to a sixth of a kernel's time. Other CPUs' registers are no wider than every stack is aligned.
    """
    if target.arch == "x86_64":
        _prefetch(intrinsic("llvm.frameaddress", "handle", tirx.const(0, "int32")))


def let(value: Expr) -> Expr:
    """Name a value, so that it is computed once."""
    return T.bind(value)


def splat(value: Expr | float, lanes: int, dtype: str = "float32") -> Expr:
    """The same scalar in every lane."""
    scalar = tirx.const(value, dtype) if isinstance(value, int | float | np.number) else value
    return scalar if lanes == 1 else T.broadcast(scalar, lanes)


def vector_type(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def type_of(value: Expr) -> str:
    """TIR type, e.g. ``float32x16``."""
    return str(value.ty)


def lanes_of(value: Expr) -> int:
    dtype = type_of(value)
    return int(dtype.rsplit("x", 1)[1]) if "x" in dtype else 1


def intrinsic(name: str, dtype: str, *operands: Expr) -> Expr:
    """Call an LLVM intrinsic that has no side effects."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *operands, dtype=dtype)


def part(vector: Expr, first: int, lanes: int) -> Expr:
    """Neighbouring lanes of a vector."""
    return shuffle([vector], range(first, first + lanes))


def fence(value: Expr) -> Expr:
    """Keep a product from being contracted with the sum behind it: quantised arithmetic rounds twice, as PyTorch does."""
    return intrinsic(FENCE, type_of(value), value)


def in_order(total: Expr) -> Expr:
    """Keep a long sum of integers from being put into another order, for which registers do not suffice."""
    dtype, lanes = type_of(total), lanes_of(total)
    floats = vector_type("float32", lanes * np.dtype(dtype.split("x")[0]).itemsize // 4)
    return T.reinterpret(fence(T.reinterpret(total, dtype=floats)), dtype=dtype)


def round_to_int(value: Expr) -> Expr:
    """fp32 to int32, half to even, of values that fit."""
    lanes = lanes_of(value)
    rounded = intrinsic("llvm.rint", type_of(value), value)
    return T.cast(rounded, vector_type("int32", lanes))


def zero_halo(buffer: Any, layout: Layout) -> None:
    """Write the halo of an image: every kernel does this for its output."""
    if not any(layout.halo):
        return
    n, _, height, _ = layout.shape
    group, pitch = layout.group, layout.pitch * layout.group
    top, bottom = layout.halo[0] * pitch, layout.halo[1] * pitch
    side = layout.lead * group
    plane = layout.rows * pitch

    def clear(start: Expr, count: int, fill: float) -> None:
        done = 0
        lanes = 64 // np.dtype(layout.dtype).itemsize
        while done < count:
            while lanes > count - done:
                lanes //= 2
            store(buffer, start + done, splat(fill, lanes, layout.dtype))
            done += lanes

    def around(base: Expr, fill: float) -> None:
        if top:
            clear(base, top, fill)
        if side:
            with serial(height) as row:
                clear(base + top + row * pitch, side, fill)
        if bottom:
            clear(base + top + height * pitch, bottom, fill)

    def behind(fill: float) -> None:
        if side:
            with serial(n) as sample:
                clear(sample * layout.stride + layout.sample, side, fill)

    if not isinstance(layout.fill, tuple):
        with serial(n) as sample, serial(layout.channels // group) as channel:
            around(sample * layout.stride + channel * plane, layout.fill)
        behind(layout.fill)
        return
    behind(layout.fill[-1])  # what is behind a sample is the beginning of the next
    with serial(n) as sample:
        for channel, fill in enumerate(layout.fill):
            around(sample * layout.stride + channel * plane, fill)


def step(
    s: Step,
    x: Expr,
    operand: Expr | None,
    channel: Callable[[NDArray[np.float32]], Expr],
    target: Target,
) -> Expr:
    """One epilogue step on a vector; not-a-number and infinity go through as in PyTorch.

    Args:
        operand: the same lanes of the step's other tensor, if it has one.
        channel: gives a per-channel constant for these lanes.
    """
    lanes = lanes_of(x)

    def c(value: float) -> Expr:
        return splat(float(np.float32(value)), lanes)

    def factor(value: float) -> Expr:
        """A constant to multiply with; 0 times infinity is not a number, but TVM would make it 0."""
        return c(value) if value else fence(c(value))

    p = s.params
    match s.op:
        case "leaky_relu" if 0 < p[0] <= 1:
            return at_least(x, x * c(p[0]), target)
        case "leaky_relu":
            return T.Select(x > c(0), x, x * factor(p[0]))
        case "relu":
            return at_least(x, c(0), target)
        case "relu6":
            return at_most(at_least(x, c(0), target), c(6), target)
        case "clip":
            return at_most(at_least(x, c(p[0]), target), c(p[1]), target)
        case "hard_sigmoid":
            return at_most(at_least(fence(x) + c(3), c(0), target), c(6), target) * c(1 / 6)
        case "prelu":
            return T.Select(x > c(0), x, x * channel(s.constants[0]))
        case "scale_channels":
            return x * channel(s.constants[0])
        case "shift_channels":
            return fence(x) + channel(s.constants[0])
        case "affine":
            return fence(x * factor(p[0])) + c(p[1])
        case "neg":
            return c(0) - x
        case "abs":
            return T.max(x, c(0) - x)
        case "sqrt":
            return intrinsic("llvm.sqrt", type_of(x), x)
        case "rsqrt":
            return c(1) / intrinsic("llvm.sqrt", type_of(x), x)
        case "exp":
            return vector_math.exp(x)
        case "sigmoid":
            return vector_math.sigmoid(x)
        case "tanh":
            return vector_math.tanh(x)
        case "gelu":
            return c(0.5) * x * (c(1) + vector_math.erf(x * c(0.5**0.5)))
        case "silu":
            return x * vector_math.sigmoid(x)
        case "elu":
            return T.Select(x > c(0), x, c(p[0]) * (vector_math.exp(at_most(x, c(0), target)) - c(1)))
        case "softplus":
            return vector_math.softplus(x)
    assert operand is not None, s.op
    match s.op:
        case "add":
            return fence(x) + operand
        case "sub":
            return fence(x) - operand
        case "rsub":
            return operand - fence(x)
        case "mul":
            return x * operand
        case "max":
            return larger(x, operand, target)
        case "min":
            return smaller(x, operand, target)
    raise ValueError(f"no epilogue step {s.op!r}")


def quantize(x: Expr, quant: Quant, target: Target) -> Expr:
    """fp32 lanes to int32 codes in 0…255; not-a-number becomes 0."""
    lanes = lanes_of(x)
    if quant.offset:
        x = fence(x) - splat(float(np.float32(quant.offset)), lanes)
    scaled = x * splat(float(quant.inverse), lanes)
    # Clamp before the conversion: what does not fit int32 would turn into its most negative value.
    low, high = (splat(float(limit - quant.zero_point), lanes) for limit in (0, 255))
    return round_to_int(within(scaled, low, high, target)) + splat(quant.zero_point, lanes, "int32")


def halve(x: Expr, half: Half) -> Expr:
    """fp32 lanes in half precision."""
    scaled = x * splat(half.gain, lanes_of(x)) if half.gain != 1 else x
    return T.cast(scaled, vector_type("float16", lanes_of(x)))


def shuffle(vectors: Sequence[Expr], indices: Sequence[int]) -> Expr:
    """Lanes picked from vectors laid end to end."""
    return tirx.Shuffle(list(vectors), [tirx.const(i, "int32") for i in indices])


def signed(buffer: Any, offset: Expr, lanes: int) -> Expr:
    """Load int8 from a buffer of uint8, such as the scratch."""
    return let(T.reinterpret(load(buffer, offset, lanes), dtype=vector_type("int8", lanes)))


def at_least(x: Expr, bound: Expr, target: Target) -> Expr:
    """The larger of fp32 lanes and a bound; NaN where x is. On x86 the order of the operands decides that: its
    instruction gives the second if they do not compare."""
    return neon("fmax", x, bound) if _has_neon(x, target) else T.max(bound, x)


def at_most(x: Expr, bound: Expr, target: Target) -> Expr:
    """The smaller of fp32 lanes and a bound; NaN where x is."""
    return neon("fmin", x, bound) if _has_neon(x, target) else T.min(bound, x)


def within(x: Expr, low: Expr, high: Expr, target: Target) -> Expr:
    """fp32 lanes between two bounds; NaN becomes the lower."""
    if _has_neon(x, target):
        return neon("fminnm", neon("fmaxnm", x, low), high)
    return T.min(T.max(x, low), high)


def larger(a: Expr, b: Expr, target: Target) -> Expr:
    """The larger of two fp32 vectors, NaN where either is."""
    return neon("fmax", a, b) if _has_neon(a, target) else T.Select(_is_number(a), T.max(a, b), a)


def smaller(a: Expr, b: Expr, target: Target) -> Expr:
    """The smaller of two fp32 vectors, NaN where either is."""
    return neon("fmin", a, b) if _has_neon(a, target) else T.Select(_is_number(a), T.min(a, b), a)


def _is_number(x: Expr) -> Expr:
    # Without the fence TVM would know the answer, wrongly; and its "not equal" is false if there is nothing to compare.
    return tirx.EQ(fence(x), x)


def _has_neon(x: Expr, target: Target) -> bool:
    return target.arch == "aarch64" and lanes_of(x) in (2, 4)


def neon(name: str, a: Expr, b: Expr) -> Expr:
    """ARM's instruction on two fp32 vectors, where LLVM would need several for a comparison and a choice."""
    return intrinsic(f"llvm.aarch64.neon.{name}.v{lanes_of(a)}f32", type_of(a), a, b)


def to_int(x: Expr, target: Target, bounded: bool = False) -> Expr:
    """fp32 to int32, half to even; what does not fit becomes very large or very small, and NaN very small.

    Args:
        bounded: the caller knows that ``|x|`` stays below 2^30.
    """
    lanes = lanes_of(x)
    dtype = vector_type("int32", lanes)
    if not bounded:
        if target.arch == "aarch64":  # saturates, but would make a zero of NaN
            x = neon("fmaxnm", x, splat(-(2.0**30), lanes))
        else:  # makes the most negative number of NaN, but also of what is too large
            x = at_most(x, splat(2.0**30, lanes), target)
    if target.arch == "aarch64":
        return intrinsic(f"llvm.aarch64.neon.fcvtns.v{lanes}i32.v{lanes}f32", dtype, x)
    if lanes == 16:
        nothing, every, current = splat(0, 16, "int32"), tirx.const(-1, "int16"), tirx.const(4, "int32")
        return intrinsic("llvm.x86.avx512.mask.cvtps2dq.512", dtype, x, nothing, every, current)
    return intrinsic("llvm.x86.avx.cvt.ps2dq.256" if lanes == 8 else "llvm.x86.sse2.cvtps2dq", dtype, x)


def pack_codes(values: Sequence[Expr], quant: Quant, target: Target, bounded: bool = False) -> Expr:
    """Quantise four fp32 vectors of L = 4, 8 or 16 lanes (ARM: 4) and narrow them into one of uint8. Vectors of
    int32 are codes but for the zero point and the clipping.

    The narrowing instructions saturate, which is the clipping, and work within 128 bits. So the codes come in
    blocks of 16: four of each vector. Code `p` of vector `i` is lane ``p // 4 * 16 + i * 4 + p % 4``.

    Args:
        bounded: the caller knows that ``|x / scale|`` stays below 2^30.
    """
    lanes = lanes_of(values[0])
    scaled = []
    for x in values:
        if type_of(x).startswith("int32"):
            scaled.append(x)
            continue
        if quant.offset:
            x = fence(x) - splat(float(np.float32(quant.offset)), lanes)
        scaled.append(to_int(x * splat(float(quant.inverse), lanes), target, bounded))

    def narrow(a: Expr, b: Expr, to: str) -> Expr:
        """Saturate two vectors to half their width, four or eight lanes of each in turn."""
        dtype = vector_type(to, 2 * lanes_of(a))
        if target.arch == "aarch64":
            half = vector_type(to, lanes_of(a))
            form = {"int16": f"sqxtn.v{lanes_of(a)}i16", "uint8": f"sqxtun.v{lanes_of(a)}i8"}[to]
            name = f"llvm.aarch64.neon.{form}"
            return shuffle([intrinsic(name, half, a), intrinsic(name, half, b)], range(2 * lanes_of(a)))
        name = {"int16": "packssdw", "uint8": "packuswb"}[to]
        form = {4: f"sse2.{name}.128", 8: f"avx2.{name}", 16: f"avx512.{name}.512"}[lanes]
        return intrinsic(f"llvm.x86.{form}", dtype, a, b)

    words = [narrow(scaled[0], scaled[1], "int16"), narrow(scaled[2], scaled[3], "int16")]
    if quant.zero_point:
        zero = splat(quant.zero_point, 2 * lanes, "int16")
        words = [intrinsic("llvm.sadd.sat", type_of(w), w, zero) for w in words]
    return narrow(words[0], words[1], "uint8")


@dataclass(frozen=True)
class Piece:
    """Pixels to store: `values` are as many vectors (see `pack_codes`) as a group has channels, all of the same pixels.

    `follows`: the place is directly behind the previous piece's. `phases`: instead of one vector a channel has
    so many, side by side in `values`; they take turns pixel by pixel.
    """

    offset: Expr
    values: Sequence[Expr]
    follows: bool = False
    phases: int = 1


def store_codes(
    buffer: Any, pieces: Sequence[Piece], quant: Quant, target: Target, bounded: bool = False
) -> None:
    """Quantise pieces, interleave their channels (1, 2 or 4 a group) and store them; see `pack_codes`."""
    size, phases = len(pieces[0].values), pieces[0].phases
    at_once = max(4 // size, 1)
    for first in range(0, len(pieces), at_once):
        some = pieces[first : first + at_once]
        vectors = [v for piece in some for v in piece.values]
        lanes = lanes_of(vectors[0])
        vectors += [vectors[-1]] * (-len(vectors) % 4)
        fours = [vectors[i : i + 4] for i in range(0, len(vectors), 4)]
        packed = [pack_codes(four, quant, target, bounded) for four in fours]
        if len(packed) > 1:
            packed = [let(codes) for codes in packed]

        def lane(vector: int, p: int, lanes: int = lanes) -> int:
            """Where code `p` of a vector is."""
            return vector // 4 * 4 * lanes + p // 4 * 16 + vector % 4 * 4 + p % 4

        order = [
            lane(i * size + c * phases + phase, p)
            for i in range(len(some))
            for p in range(lanes)
            for phase in range(phases)
            for c in range(size // phases)
        ]
        if len(some) == 1 or all(piece.follows for piece in some[1:]):
            widest = 4 * lanes
            for i in range(0, len(order), widest):
                store(buffer, some[0].offset + i, shuffle(packed, order[i : i + widest]))
            continue
        # One shuffle of the whole register, then its parts: cheaper than a shuffle for each part.
        whole = let(shuffle(packed, order))
        for i, piece in enumerate(some):
            part_size = lanes * size
            store(buffer, piece.offset, shuffle([whole], range(i * part_size, (i + 1) * part_size)))


class Finish:
    """The end of every kernel: epilogue, quantisation, store.

    Args:
        op: the operator. buffers: the function's parameters, as `function` yields them.
        first: index of the parameter of the epilogue's first operand (after x and other main inputs).
        constants: per-channel constants of the epilogue, as appended by `epilogue_constants`, and the index
            of the first among the parameters.
    """

    def __init__(
        self,
        op: Op,
        buffers: Sequence[Any],
        first_operand: int,
        first_constant: int,
        target: Target,
    ) -> None:
        self.target = target
        self.op, self.y = op, buffers[-1] if buffers[-1].name == "y" else buffers[-2]
        self.buffers, self.first_operand, self.first_constant = buffers, first_operand, first_constant

    def value(self, x: Expr, place: Callable[[Layout], Expr], channel: Expr, channel_lanes: int) -> Expr:
        """Apply the epilogue to lanes `x`.

        Args:
            place: offset of these lanes in a tensor of a given layout (used for operands of the output's shape;
                gates of shape (N, C, 1, 1) or (N, 1, H, W) are asked for with their own layout).
            channel: the first channel of the lanes; `channel_lanes`: 1 if all lanes are of one channel, else the
                lanes are that many consecutive channels.
        """
        lanes = lanes_of(x)
        operand_at, constant_at = self.first_operand, self.first_constant

        for s in self.op.epilogue:
            operand = None
            if s.operand is not None:
                scalar = (
                    len(s.operand.shape) == 4
                    and s.operand.shape[2:] == (1, 1)
                    and self.op.y.shape[2:] != (1, 1)
                )
                buffer = self.buffers[operand_at]
                operand = (
                    splat(load(buffer, place(s.operand), 1), lanes)
                    if scalar
                    else load(buffer, place(s.operand), lanes)
                )
                operand_at += 1
            offset = constant_at

            def per_channel(array: NDArray[np.float32], offset: int = offset, s: Step = s) -> Expr:
                index = next(i for i, a in enumerate(s.constants) if a is array)
                buffer = self.buffers[offset + index]
                if channel_lanes == 1:
                    return splat(load(buffer, channel, 1), lanes)
                return load(buffer, channel, lanes)

            x = step(s, x, operand, per_channel, self.target)
            constant_at += len(s.constants)
        return x

    def store(self, offset: Expr, x: Expr) -> None:
        """Quantise if the output is quantised, and store."""
        if self.op.y_quant is None:
            store(self.y, offset, x)
        elif isinstance(self.op.y_quant, Half):
            store(self.y, offset, halve(x, self.op.y_quant))
        else:
            codes = quantize(x, self.op.y_quant, self.target)
            store(self.y, offset, T.cast(codes, vector_type("uint8", lanes_of(x))))


def epilogue_constants(op: Op) -> list[NDArray[np.float32]]:
    """Per-channel constants of the epilogue: kernels append them to their own."""
    return [np.ascontiguousarray(a, np.float32) for s in op.epilogue for a in s.constants]
