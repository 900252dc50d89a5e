"""Winograd's form against the reference: shapes, halos, borders, epilogues, knobs, and its rounding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgecsi.kernels.variants import all_kernels, candidates
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.harness import Case, run_cases
from tests.kernels.common import check, normal, on_targets
from tests.kernels.test_f32_conv2d_direct import convolution

KERNEL = all_kernels()["f32_conv2d_winograd"]


@on_targets()
def test_every_shape_matches_the_reference(target: str) -> None:
    rng = np.random.default_rng(1)
    leaky = (Step("leaky_relu", (0.3,)),)
    steps = (
        Step("scale_channels", constants=(normal(rng, 5),)),
        Step("add", operand=Layout((2, 5, 9, 13), halo=(2, 2, 2, 2))),
        Step("prelu", constants=(normal(rng, 5),)),
        Step("mul", operand=Layout((2, 5, 1, 1))),
        Step("mul", operand=Layout((2, 1, 9, 13))),
    )
    operators = [
        convolution(rng, 2, 8, (32, 32), steps=leaky),
        convolution(rng, 16, 2, (32, 32), halo=0, bias=False),
        convolution(rng, 3, 5, (9, 13), n=2, steps=steps),
        convolution(rng, 24, 40, (4, 4), steps=leaky),
        convolution(rng, 1, 1, (2, 4)),
        convolution(rng, 5, 17, (7, 31), halo=2),
        convolution(rng, 33, 3, (3, 130)),
    ]
    check([Case(KERNEL, op, [normal(rng, *lay.shape) for lay in op.inputs]) for op in operators], target)


@on_targets("host", "rpi4")
def test_a_convolution_without_padding_reads_nothing_outside(target: str) -> None:
    rng = np.random.default_rng(2)
    op = Conv2d(
        x=Layout((1, 4, 12, 18)),
        y=Layout((1, 6, 10, 16)),
        weight=normal(rng, 6, 4, 3, 3),
        bias=normal(rng, 6),
    )
    check([Case(KERNEL, op, [normal(rng, *op.x.shape)])], target)


@on_targets("host", "rpi4")
def test_any_knobs_give_the_same_answer(target: str) -> None:
    rng = np.random.default_rng(3)
    board = load(target)
    op = convolution(rng, 4, 12, (9, 37), n=2, steps=(Step("relu"),))
    space = KERNEL.space(op, board)
    combinations = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    cases = []
    for index in rng.permutation(len(combinations)):
        try:
            KERNEL.emit(op, board, combinations[index])
        except ValueError:
            continue  # does not fit
        cases.append(Case(KERNEL, op, [normal(rng, *op.x.shape)], combinations[index]))
        if len(cases) == 8:
            break
    assert len(cases) == 8
    check(cases, target)


@on_targets("host", "rpi4")
def test_output_may_be_quantised(target: str) -> None:
    rng = np.random.default_rng(4)
    op = convolution(rng, 2, 4, (8, 24), quant=Quant(0.1, 128))
    op.weight[:] = np.rint(op.weight * 4) / 2  # transformed weights and sums are exact, so codes are too
    assert op.bias is not None
    op.bias[:] = np.rint(op.bias * 8) / 8 + 1 / 64
    check([Case(KERNEL, op, [np.rint(normal(rng, *op.x.shape) * 4) / 4])], target)


@pytest.mark.parametrize(("ins", "outs"), [(8, 16), (64, 64), (256, 32)])
def test_it_rounds_far_below_what_fp32_is_allowed(ins: int, outs: int) -> None:
    """1e-5 of the largest output is what a build accepts of an fp32 network."""
    rng = np.random.default_rng(5)
    op = convolution(rng, ins, outs, (16, 16))
    x = 0.5 + 0.025 * normal(rng, *op.x.shape)  # as channels lie
    _, y, _ = run_cases([Case(KERNEL, op, [x])], load("x86"))[0]
    expected = op.reference(x)
    assert np.abs(y - expected).max() <= 2e-6 * np.abs(expected).max()


@on_targets("host", "rpi4")
def test_nan_and_infinity_stay_where_their_tile_is(target: str) -> None:
    """What is not finite spreads over its tile of 2x2 outputs, as Winograd's sums take it, but no further."""
    rng = np.random.default_rng(6)
    op = convolution(rng, 2, 3, (16, 32), halo=0)
    x = normal(rng, *op.x.shape)
    x[0, 1, 8, 8] = np.nan
    _, y, _ = run_cases([Case(KERNEL, op, [x])], load(target))[0]
    direct = op.reference(x)
    assert np.isnan(y[np.isnan(direct)]).all()
    rows, columns = np.nonzero(np.isnan(y[0]).any(0))
    assert rows.min() >= 6
    assert rows.max() <= 9
    assert columns.min() >= 6
    assert columns.max() <= 9


def test_other_filters_are_refused() -> None:
    rng = np.random.default_rng(7)
    board = load("x86-64-v4")
    for op in (
        convolution(rng, 2, 2, (8, 8), (5, 5)),
        convolution(rng, 2, 2, (8, 8), stride=(2, 2)),
        convolution(rng, 2, 2, (8, 8), dilation=(2, 2)),
        convolution(rng, 2, 2, (8, 8), groups=2),
        convolution(rng, 2, 2, (8, 3)),
    ):
        assert KERNEL.refuses(op, board)


@pytest.mark.parametrize("target", ["x86", "x86-64-v4", "rpi4", "rpi5"])
def test_it_is_chosen_where_multiplications_dominate(target: str) -> None:
    rng = np.random.default_rng(8)

    def first(ins: int, outs: int) -> str:
        return candidates(convolution(rng, ins, outs, (32, 32)), load(target))[0][0][0].name

    assert first(8, 16) == "f32_conv2d_winograd"
    assert first(2, 2) == "f32_conv2d_direct"
