"""Convolutions in half precision against the reference, within what their additions may round: shapes, strides, halos,
epilogues, knobs, densities, what is not finite."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from edgecsi.kernels.conv.arithmetic import f16_stretch
from edgecsi.kernels.conv.f32_conv2d_winograd import WEIGHTS
from edgecsi.kernels.variants import all_kernels, candidates
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d, Half, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.harness import Case
from tests.kernels.common import available, describe, normal, outside
from tests.kernels.guarded import run_guarded
from tests.kernels.test_f32_conv2d_direct import convolution

Array = np.ndarray[Any, Any]
KERNELS = {form: all_kernels()[f"f16_conv2d_{form}"] for form in ("direct", "winograd")}
TARGET = "rpi5"
UNIT = 2.0**-11


def half(op: Conv2d, rng: np.random.Generator, *, fills: bool = False, gain: float = 0.0) -> Conv2d:
    """The same convolution in half precision.

    Args:
        fills: the halos of input and output have numbers of their own for every channel, and results a scale. gain: of
            the output, if that is in half precision too.
    """
    outs, (top, bottom, left, right) = len(op.weight), op.x.halo
    x, y = replace(op.x, dtype="float16"), replace(op.y, dtype="float16") if gain else op.y
    if fills:
        numbers = normal(rng, x.shape[1] + outs).astype(np.float16).tolist()
        x = replace(
            x, halo=(top, bottom + (left + right > 0), left, right), fill=tuple(numbers[: x.shape[1]])
        )
        y = replace(y, fill=tuple(numbers[x.shape[1] :]))
    scale = np.exp2(rng.integers(-2, 3, outs)) if fills else np.ones(outs)
    weight = (op.weight / np.sqrt(op.weight[0].size)).astype(np.float16)
    quant = Half(gain) if gain else op.y_quant
    return replace(op, x=x, y=y, weight=weight, scale=scale.astype(np.float32), y_quant=quant)


def shapes(rng: np.random.Generator, form: str) -> list[Conv2d]:
    leaky = (Step("leaky_relu", (0.3,)),)
    steps = (
        Step("shift_channels", constants=(normal(rng, 5),)),
        Step("add", operand=Layout((2, 5, 9, 13), halo=(2, 2, 2, 2))),
        Step("prelu", constants=(np.abs(normal(rng, 5)),)),
        Step("mul", operand=Layout((2, 5, 1, 1))),
        Step("mul", operand=Layout((2, 1, 9, 13))),
    )
    operators = [
        half(convolution(rng, 2, 8, (32, 32), steps=leaky), rng, fills=True, gain=4.0),
        half(convolution(rng, 8, 16, (32, 32), steps=leaky), rng, gain=1.0),
        half(convolution(rng, 6, 2, (32, 32), halo=0, bias=False), rng),
        half(convolution(rng, 3, 5, (9, 13), n=2, steps=steps), rng, fills=True),
        half(convolution(rng, 8, 40, (4, 8), steps=leaky), rng),
        half(convolution(rng, 5, 17, (7, 31), halo=2), rng, gain=0.25),
        half(convolution(rng, 7, 3, (3, 130), n=3), rng),
        half(convolution(rng, 4, 6, (8, 21), quant=Quant(0.05, 128)), rng),
    ]
    if form == "direct":
        operators += [
            half(convolution(rng, 5, 17, (7, 31), (1, 1), halo=2), rng),
            half(convolution(rng, 7, 7, (32, 32), (1, 9)), rng, fills=True),
            half(convolution(rng, 4, 6, (32, 6), (9, 1), n=2, halo=0), rng, fills=True),
            half(convolution(rng, 2, 3, (16, 20), (5, 5), dilation=(2, 3)), rng),
            half(convolution(rng, 9, 4, (9, 21), (2, 4)), rng),
            half(convolution(rng, 3, 4, (16, 24), stride=(2, 2)), rng),
            half(convolution(rng, 4, 6, (9, 12), stride=(1, 3), groups=2), rng),
            half(convolution(rng, 16, 2, (32, 32), steps=leaky), rng, fills=True),
            half(convolution(rng, 24, 40, (4, 8)), rng),
            half(convolution(rng, 1, 1, (2, 3)), rng),
            half(convolution(rng, 9, 3, (3, 1)), rng, gain=1.0),
        ]
    return operators


def may_round(op: Conv2d, x: Array, form: str) -> Array:
    """The most that a result of the convolution may be off, ``[N, O, H, W]``."""
    fill = np.abs(np.reshape(op.x.fill, (-1, 1, 1))).astype(np.float64)
    around = replace(op.x, fill=tuple(np.broadcast_to(fill.ravel(), x.shape[1])))
    magnitude = replace(op, x=around, weight=np.abs(op.weight), bias=None)
    if form == "direct":
        additions = f16_stretch(op) * op.weight[0, 0].size
        products = magnitude.compute(np.abs(x)).astype(np.float64)
    else:
        # A sum over all channels, a rounded weight and two additions before; a tile may begin anywhere.
        additions = op.weight.shape[1] + 3
        points = np.abs(np.einsum("ai,ocij,bj->aboc", WEIGHTS, op.weight.astype(np.float64), WEIGHTS))
        n, _, height, width = x.shape
        # Two rows and columns around tiles that begin a pixel before the image, and what their last pixels need.
        wide = np.pad(np.abs(x.astype(np.float64)) - fill, ((0, 0), (0, 0), (2, 4), (2, 4))) + fill
        pairs = ((0, 2), (1, 2), (1, 2), (1, 3))
        sums = np.zeros((4, 4, n, len(op.weight), height + 1, width + 1))
        for i, j in itertools.product(range(4), repeat=2):
            added = sum(
                wide[:, :, a : a + height + 1, b : b + width + 1]
                for a, b in itertools.product(pairs[i], pairs[j])
            )
            sums[i, j] = np.einsum("nchw,oc->nohw", added, points[i, j])
        # Row r of the results is row a of the tile that begins at r - a.
        products = np.zeros((n, len(op.weight), height, width))
        for a, b in itertools.product(range(2), repeat=2):
            some = sums[a : a + 3, b : b + 3].sum((0, 1))
            products = np.maximum(products, some[:, :, 1 - a : 1 - a + height, 1 - b : 1 - b + width])
        assert op.scale is not None
        products *= op.scale.reshape(-1, 1, 1)
    rounded = additions * UNIT / (1 - additions * UNIT)
    return rounded * products + 1e-6 * (1 + np.abs(op.compute(x)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Moved(Conv2d):
    """A convolution whose results are off by so much, before what comes behind them."""

    by: Array

    def compute(self, *inputs: Array) -> Array:
        return (super().compute(*inputs) + self.by).astype(np.float32)


def check(cases: Sequence[Case], form: str) -> None:
    """Every number lies between what a result that is off as far as it may be, up or down, becomes."""
    board = available(TARGET)
    for number, (case, memory) in enumerate(zip(cases, run_guarded(cases, board), strict=True)):
        op = case.op
        assert case.kernel.refuses(op, board) == "", describe(case)
        bound = may_round(op, case.inputs[0], form)
        ends = [Moved(**vars(op), by=by).reference(*case.inputs) for by in (-bound, bound)]
        low, high = (side(*ends).astype(np.float64) for side in (np.minimum, np.maximum))
        got, slack = op.y.read(memory).astype(np.float64), 2e-6 * np.abs(low).max()
        wrong = ~((got >= low - slack) & (got <= high + slack))
        assert not wrong.any(), f"case {number}: {describe(case)}: {wrong.sum()} of {wrong.size}"
        assert (outside(memory, op.y) == outside(op.y.store(low), op.y)).all(), f"case {number}: halo"


def inputs(op: Conv2d, rng: np.random.Generator) -> list[Array]:
    x, *more = (normal(rng, *layout.shape) for layout in op.inputs)
    return [x.astype(np.float16), *more]


@pytest.mark.parametrize("form", KERNELS)
def test_every_shape_is_as_near_as_its_additions_allow(form: str) -> None:
    rng = np.random.default_rng(1)
    check([Case(KERNELS[form], op, inputs(op, rng)) for op in shapes(rng, form)], form)


@pytest.mark.parametrize("form", KERNELS)
def test_any_knobs_and_density_give_the_same_answer(form: str) -> None:
    rng = np.random.default_rng(2)
    board = load(TARGET)
    op = half(convolution(rng, 8, 12, (9, 37), n=2, steps=(Step("relu"),)), rng, gain=0.5)
    space = KERNELS[form].space(op, board)
    combinations = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    cases: list[Case] = []
    for index in rng.permutation(len(combinations)):
        try:
            KERNELS[form].emit(op, board, combinations[index])
        except ValueError:
            continue  # does not fit
        zeros = rng.random(op.weight.shape) < len(cases) / 7
        sparse = replace(op, weight=np.where(zeros, np.float16(0), op.weight))
        cases.append(Case(KERNELS[form], sparse, inputs(op, rng), combinations[index]))
        if len(cases) == 8:
            break
    assert len(cases) == 8
    check(cases, form)


def test_what_is_not_finite_goes_through_as_through_pytorch() -> None:
    """It reaches the pixels whose filter sees it; what half precision cannot hold is infinite."""
    rng = np.random.default_rng(3)
    board = available(TARGET)
    op = half(convolution(rng, 3, 4, (9, 16), n=4), rng)
    x = inputs(op, rng)[0]
    x[0, 1, 3, 5], x[1, 2, 8, 15], x[2, 0, 0, 0] = np.nan, np.inf, -np.inf
    x[3] = 6e4
    op.weight[:] = np.abs(op.weight) + np.float16(0.5)
    got = op.y.read(run_guarded([Case(KERNELS["direct"], op, [x])], board)[0])
    with np.errstate(all="ignore"):
        want = op.reference(x)
    assert (np.isnan(got) == np.isnan(want)).all()
    assert (np.isinf(got[1:3]) == np.isinf(want[1:3])).all()
    assert (got[3] == np.inf).all()
    tiles = op.y.read(run_guarded([Case(KERNELS["winograd"], op, [x])], board)[0])
    assert np.isnan(tiles[np.isnan(want)]).all()
    rows, columns = np.nonzero(~np.isfinite(tiles[0]).all(0))
    assert (rows.min() >= 1, rows.max() <= 6, columns.min() >= 3, columns.max() <= 8) == (True,) * 4


def test_what_it_cannot_is_refused() -> None:
    rng = np.random.default_rng(4)
    op = half(convolution(rng, 2, 2, (8, 16)), rng)
    for name, refused, target in (
        ('no half-precision arithmetic (half = "" in rpi4)', op, "rpi4"),
        ("no half-precision arithmetic", op, "x86-64-v4"),
        ("needs input and weights in half precision", convolution(rng, 2, 2, (8, 16)), TARGET),
        ("no row for what is right of the last", replace(op, x=replace(op.x, fill=(1.0, 2.0))), TARGET),
        ("halo", replace(op, x=replace(op.x, halo=(0, 0, 0, 0))), TARGET),
    ):
        found, why = candidates(refused, load(target))
        assert name in " ".join(why.values())
        assert not any(kernel.name.startswith("f16") for kernel, _, _ in found)


def test_winograd_is_chosen_where_multiplications_dominate() -> None:
    rng = np.random.default_rng(5)

    def first(ins: int, outs: int) -> str:
        return candidates(half(convolution(rng, ins, outs, (32, 32)), rng), load(TARGET))[0][0][0].name

    assert first(8, 16) == "f16_conv2d_winograd"
    assert first(16, 8) == "f16_conv2d_direct"
    assert first(2, 8) == "f16_conv2d_direct"
