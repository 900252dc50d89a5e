"""Random dense layers for the tests of the sparse and int8 dense kernels."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgecsi.kernels.base import Kernel
from edgecsi.kernels.dense.slices import SliceDense
from edgecsi.kernels.variants import all_kernels
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import Target
from edgecsi.tune.harness import Case
from tests._every_case import EVERY_CASE, in_turns

Array = np.ndarray[Any, Any]
TARGETS = ("x86-64-v3", "host", "rpi4", "rpi5")
DENSITIES = (0.0, 0.03, 0.1, 0.3, 1.0)
# outputs, inputs: whole vectors, odd, single, and more panels than rows of a block
SHAPES = ((64, 128), (37, 45), (1, 5), (19, 3), (130, 64), (5, 260))


def some_shapes(target: Target, which: int) -> range:
    """Numbers of shapes and densities for a target's kernel of this number."""
    return range(which + _turn(target), which + _turn(target) + (len(SHAPES) if EVERY_CASE else 2))


def _turn(target: Target) -> int:
    return TARGETS.index(target.id) if target.id in TARGETS else 0


def some(cases: Sequence[Any], target: Target, which: int) -> Sequence[Any]:
    """Every second one; the others are another target's, or the next kernel's."""
    return in_turns(cases, which + _turn(target))


def mask(
    rng: np.random.Generator, outputs: int, inputs: int, rows: int, columns: int, density: float
) -> Array:
    """Blocks of ones, [outputs, inputs]."""
    blocks = rng.random((-(-outputs // rows), -(-inputs // columns))) < density
    return np.repeat(np.repeat(blocks, rows, 0), columns, 1)[:outputs, :inputs]


def int8_weight(
    rng: np.random.Generator, outputs: int, inputs: int, kept: Array, lowest: int = -127
) -> Array:
    """Int8 codes, many at the ends of the range."""
    extreme = rng.choice(np.array([lowest, 127]), (outputs, inputs))
    codes = np.where(
        rng.random((outputs, inputs)) < 0.5, extreme, rng.integers(lowest, 128, (outputs, inputs))
    )
    return (codes * kept).astype(np.int8)


def activations(rng: np.random.Generator, op_x: Layout) -> Array:
    """Values of a tensor; codes many at the ends of the range."""
    if op_x.dtype == "float32":
        return rng.standard_normal(op_x.shape).astype(np.float32)
    ends = rng.choice(np.array([0, 255]), op_x.shape)
    return np.where(rng.random(op_x.shape) < 0.3, ends, rng.integers(0, 256, op_x.shape)).astype(np.uint8)


def int8_layer(
    rng: np.random.Generator,
    weight: Array,
    *,
    dynamic: bool,
    fine: int = 1,
    batch: int = 1,
    x: Layout | None = None,
    y: Layout | None = None,
    epilogue: tuple[Step, ...] = (),
    y_quant: Quant | None = None,
    bias: bool = True,
) -> Dense:
    """An int8 layer with random scales and bias; `dynamic` or, with `fine` above 1, rounding its input to two planes."""
    outputs, inputs = weight.shape
    dtype = "float32" if dynamic or fine > 1 else "uint8"
    bias_of = (
        rng.standard_normal(outputs).astype(np.float32) if dynamic else rng.integers(-99999, 99999, outputs)
    )
    return Dense(
        x=x or Layout((batch, inputs), dtype),
        y=y or Layout((batch, outputs), "uint8" if y_quant else "float32"),
        weight=weight,
        scale=(rng.random(outputs) * 1e-3 + 1e-4).astype(np.float32),
        bias=(bias_of if dynamic else bias_of.astype(np.int32)) if bias else None,
        dynamic=dynamic,
        fine=fine,
        x_quant=None if dynamic else Quant(0.0173, int(rng.integers(0, 256)), 0.5),
        epilogue=epilogue,
        y_quant=y_quant,
    )


def case(rng: np.random.Generator, kernel: Kernel, op: Dense) -> Case:
    """With random inputs."""
    return Case(kernel, op, [activations(rng, layout) for layout in op.inputs])


def kernels_for(target: Target, prefix: tuple[str, ...]) -> list[Kernel]:
    """Dense kernels of these names that have something to do on a target."""
    dot = {"avx512_vnni": "vnni", "avx_vnni": "vnni"}.get(target.dot, target.dot)
    other = {"vnni", "avx2", "sdot", "neon"} - {dot}
    if "avx512vbmi" not in target.features:
        other.add("vbmi")
    return [
        k
        for k in all_kernels().values()
        if k.op is Dense
        and k.name.startswith(prefix)
        and k.name.rsplit("_", 1)[1] not in other
        and not (isinstance(k, SliceDense) and k.rows != target.lanes_f32)
    ]


def taken(cases: list[Case], target: Target, kernels: Sequence[Kernel], most: int = 99) -> list[Case]:
    """The cases that are not refused, the first `most` of each kernel. Every kernel must take one: those that refuse all
    are not tested at all."""
    of: dict[str, list[Case]] = {}
    for case in cases:
        if not case.kernel.refuses(case.op, target):
            of.setdefault(case.kernel.name, []).append(case)
    found = [case for some in of.values() for case in some[: None if EVERY_CASE else most]]
    idle = {k.name for k in kernels} - {case.kernel.name for case in found}
    assert not idle, f"{', '.join(sorted(idle))}: everything was refused on {target.id}"
    return found


def rng_of(*words: object) -> np.random.Generator:
    """A generator seeded by what is tested."""
    return np.random.default_rng(zlib.crc32(repr(words).encode()))
