"""Winograd's form against the reference: shapes, halos, borders, epilogues, knobs, and its rounding."""

from __future__ import annotations

import numpy as np
import pytest

from edgecsi.kernels.base import Kernel
from edgecsi.kernels.variants import all_kernels, candidates
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.harness import Case, run_cases
from tests.kernels.common import cases_of_any_knobs, check, normal, on_targets
from tests.kernels.test_f32_conv2d_direct import convolution

KERNEL, FOUR = (all_kernels()[f"f32_conv2d_winograd{form}"] for form in ("", "4"))


def form(rows: int, columns: int) -> Kernel:
    """F(4, 3) of one direction."""
    return all_kernels()[f"f32_conv2d_winograd4_{rows}x{columns}"]


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
    check(
        [Case(KERNEL, op, [normal(rng, *lay.shape) for lay in op.inputs]) for op in operators],
        target,
        in_pairs=True,
    )


@on_targets()
def test_tiles_of_four_rows_and_columns_match_the_reference(target: str) -> None:
    rng = np.random.default_rng(9)
    leaky = (Step("leaky_relu", (0.3,)),)
    steps = (
        Step("scale_channels", constants=(normal(rng, 5),)),
        Step("add", operand=Layout((2, 5, 9, 21), halo=(2, 2, 2, 2))),
        Step("prelu", constants=(normal(rng, 5),)),
        Step("mul", operand=Layout((2, 5, 1, 1))),
        Step("mul", operand=Layout((2, 1, 9, 21))),
    )
    operators = [
        convolution(rng, 2, 8, (32, 32), steps=leaky),
        convolution(rng, 16, 2, (32, 32), halo=0, bias=False),
        convolution(rng, 3, 5, (9, 21), n=2, steps=steps),
        convolution(rng, 1, 1, (4, 16)),
        convolution(rng, 5, 17, (7, 35), halo=2),
        convolution(rng, 33, 3, (5, 130)),
    ]
    check(
        [Case(FOUR, op, [normal(rng, *lay.shape) for lay in op.inputs]) for op in operators],
        target,
        in_pairs=True,
    )


@on_targets()
def test_filters_of_one_row_or_column_match_the_reference(target: str) -> None:
    rng = np.random.default_rng(10)
    leaky = (Step("leaky_relu", (0.3,)),)
    shapes = [
        ((9, 1), (32, 32), (7, 7)), ((1, 7), (11, 34), (3, 9)), ((5, 1), (9, 21), (4, 1)), ((1, 3), (4, 16), (2, 5)),
    ]  # fmt: skip
    cases = []
    for window, size, (ins, outs) in shapes:
        op = convolution(rng, ins, outs, size, window, n=2, steps=leaky)
        cases.append(Case(form(*window), op, [normal(rng, *op.x.shape)]))
    check(cases, target)


@on_targets("host", "rpi4")
def test_a_convolution_without_padding_reads_nothing_outside(target: str) -> None:
    rng = np.random.default_rng(2)
    cases = []
    for kernel, (rows, columns) in (
        (KERNEL, (3, 3)), (FOUR, (3, 3)), (form(5, 1), (5, 1)), (form(1, 9), (1, 9))
    ):  # fmt: skip
        op = Conv2d(
            x=Layout((1, 4, 9 + rows, 15 + columns)),
            y=Layout((1, 6, 10, 16)),
            weight=normal(rng, 6, 4, rows, columns),
            bias=normal(rng, 6),
        )
        cases.append(Case(kernel, op, [normal(rng, *op.x.shape)]))
    check(cases, target)


@on_targets("host", "rpi4")
def test_any_knobs_give_the_same_answer(target: str) -> None:
    rng = np.random.default_rng(3)
    cases: list[Case] = []
    for kernel, window, wanted in ((KERNEL, (3, 3), 8), (FOUR, (3, 3), 5), (form(1, 5), (1, 5), 3)):
        op = convolution(rng, 4, 12, (9, 37), window, n=2, steps=(Step("relu"),))
        cases += cases_of_any_knobs(rng, kernel, op, target, wanted)
    check(cases, target)


@on_targets("host", "rpi4")
def test_output_may_be_quantised(target: str) -> None:
    rng = np.random.default_rng(4)
    op = convolution(rng, 2, 4, (8, 24), quant=Quant(0.1, 128))  # codes are the same within 0.003 of a result
    op.weight[:] = np.rint(op.weight * 4) / 2  # transformed weights and sums are exact, so codes are too
    assert op.bias is not None
    op.bias[:] = np.rint(op.bias * 8) / 8 + 1 / 64
    x = np.rint(normal(rng, *op.x.shape) * 4) / 4
    check([Case(kernel, op, [x]) for kernel in (KERNEL, FOUR)], target)


@pytest.mark.parametrize(("ins", "outs"), [(8, 16), (64, 64), (128, 32), (256, 32)])
def test_it_rounds_far_below_what_fp32_is_allowed(ins: int, outs: int) -> None:
    """1e-5 of the largest output is what a build accepts of an fp32 network; a form that comes near is refused."""
    rng = np.random.default_rng(5)
    op = convolution(rng, ins, outs, (16, 16))
    board = load("x86")
    kernels = [kernel for kernel in (KERNEL, FOUR) if not kernel.refuses(op, board)]
    assert len(kernels) == (2 if ins <= 128 else 1)
    for centre, width in ((0.5, 0.025), (0.0, 1.0)):  # as channels lie, and as features do
        x = np.float32(centre) + np.float32(width) * normal(rng, *op.x.shape)
        expected = op.reference(x)
        found = run_cases([Case(kernel, op, [x]) for kernel in kernels], board)
        for kernel, (_, y, _) in zip(kernels, found, strict=True):
            most = 2e-6 if kernel is KERNEL else 2.5e-6
            assert np.abs(y - expected).max() <= most * np.abs(expected).max()


@on_targets("host", "rpi4")
def test_nan_and_infinity_stay_where_their_tile_is(target: str) -> None:
    """What is not finite spreads over its tile of 2x2 or 4x4 outputs, as Winograd's sums take it, but no further."""
    rng = np.random.default_rng(6)
    op = convolution(rng, 2, 3, (16, 32), halo=0)
    x = normal(rng, *op.x.shape)
    x[0, 1, 8, 8] = np.nan
    direct = op.reference(x)
    cases = [Case(kernel, op, [x]) for kernel in (KERNEL, FOUR)]
    for (_, y, _), (first, last) in zip(run_cases(cases, load(target)), ((6, 9), (4, 11)), strict=True):
        assert np.isnan(y[np.isnan(direct)]).all()
        rows, columns = np.nonzero(np.isnan(y[0]).any(0))
        assert first <= min(rows.min(), columns.min())
        assert max(rows.max(), columns.max()) <= last


def test_other_filters_are_refused() -> None:
    rng = np.random.default_rng(7)
    board = load("x86-64-v4")
    for op in (
        convolution(rng, 2, 2, (8, 8), (5, 5)),
        convolution(rng, 2, 2, (8, 8), stride=(2, 2)),
        convolution(rng, 2, 2, (8, 8), dilation=(2, 2)),
        convolution(rng, 2, 2, (8, 8), groups=2),
        convolution(rng, 2, 2, (8, 3)),
        convolution(rng, 2, 2, (8, 8), (3, 1)),
    ):
        assert KERNEL.refuses(op, board)
        assert FOUR.refuses(op, board)
    assert FOUR.refuses(convolution(rng, 2, 2, (8, 15)), board)
    assert FOUR.refuses(convolution(rng, 2, 2, (3, 32)), board)


@pytest.mark.parametrize("target", ["x86", "x86-64-v4", "rpi4", "rpi5"])
def test_it_is_chosen_where_multiplications_dominate(target: str) -> None:
    rng = np.random.default_rng(8)

    def first(ins: int, outs: int) -> str:
        return candidates(convolution(rng, ins, outs, (32, 32)), load(target))[0][0][0].name

    assert first(8, 16) == "f32_conv2d_winograd4"
    assert first(2, 2) == "f32_conv2d_direct"
