"""Both direct convolutions against the reference: shapes, strides, dilations, groups, halos, epilogues."""

from __future__ import annotations

import numpy as np
import pytest

from edgecsi.kernels.variants import all_kernels, candidates
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.harness import Case
from tests.kernels.common import cases_of_any_knobs, check, normal, on_targets

KERNELS = ("f32_conv2d_direct", "f32_conv2d_direct_co")


def convolution(
    rng: np.random.Generator,
    ci: int,
    co: int,
    size: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    *,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    n: int = 1,
    halo: int = 1,
    bias: bool = True,
    steps: tuple[Step, ...] = (),
    quant: Quant | None = None,
) -> Conv2d:
    """A convolution with 'same' padding and random weights, its output inside a halo."""
    pads = [(k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True)]
    ends = [(k - 1) * d - p for k, d, p in zip(kernel, dilation, pads, strict=True)]
    out = [(s - 1) // t + 1 for s, t in zip(size, stride, strict=True)]
    shape = (n, co, *out)
    y = Layout(shape, "uint8" if quant else "float32", (halo,) * 4, fill=quant.zero_point if quant else 0)
    return Conv2d(
        x=Layout((n, ci, *size), halo=(pads[0], ends[0], pads[1], ends[1])),
        y=y,
        weight=normal(rng, co, ci // groups, *kernel),
        bias=normal(rng, co) if bias else None,
        stride=stride,
        dilation=dilation,
        groups=groups,
        padding=(pads[0], ends[0], pads[1], ends[1]),
        epilogue=steps,
        y_quant=quant,
    )


def operators() -> list[Conv2d]:
    rng = np.random.default_rng(1)
    leaky = (Step("leaky_relu", (0.3,)),)
    residual = (
        Step("scale_channels", constants=(normal(rng, 5),)),
        Step("shift_channels", constants=(normal(rng, 5),)),
        Step("add", operand=Layout((2, 5, 9, 13), halo=(2, 2, 2, 2))),
        Step("prelu", constants=(normal(rng, 5),)),
        Step("mul", operand=Layout((2, 5, 1, 1))),
        Step("mul", operand=Layout((2, 1, 9, 13))),
    )
    return [
        convolution(rng, 2, 8, (32, 32), steps=leaky),
        convolution(rng, 16, 2, (32, 32), halo=0, bias=False),
        convolution(rng, 3, 5, (9, 13), n=2, steps=residual),
        convolution(rng, 24, 40, (4, 4), steps=leaky),
        convolution(rng, 5, 17, (7, 31), (1, 1), halo=2),
        convolution(rng, 4, 6, (8, 33), (1, 9)),
        convolution(rng, 4, 6, (32, 6), (9, 1)),
        convolution(rng, 2, 3, (16, 20), (5, 5)),
        convolution(rng, 8, 8, (16, 16), (7, 7), groups=4),
        convolution(rng, 6, 6, (10, 18), groups=6),
        convolution(rng, 4, 6, (17, 32), stride=(2, 2)),
        convolution(rng, 4, 6, (17, 32), (3, 4), stride=(1, 3), n=2),
        convolution(rng, 4, 4, (12, 19), dilation=(2, 3)),
        convolution(rng, 3, 4, (30, 1), (3, 1)),
        convolution(rng, 3, 4, (1, 30), (1, 3)),
        convolution(rng, 1, 1, (1, 1), (1, 1)),
    ]


@on_targets()
@pytest.mark.parametrize("name", KERNELS)
def test_every_shape_matches_the_reference(name: str, target: str) -> None:
    rng = np.random.default_rng(2)
    kernel = all_kernels()[name]
    check(
        [Case(kernel, op, [normal(rng, *lay.shape) for lay in op.inputs]) for op in operators()],
        target,
        in_pairs=True,
    )


@on_targets("host", "rpi4")
@pytest.mark.parametrize("name", KERNELS)
def test_any_knobs_give_the_same_answer(name: str, target: str) -> None:
    rng = np.random.default_rng(3)
    kernel = all_kernels()[name]
    op = convolution(rng, 4, 12, (9, 21), n=2, steps=(Step("relu"),))
    check(cases_of_any_knobs(rng, kernel, op, target, 6), target)


@on_targets("host", "rpi4")
@pytest.mark.parametrize("name", KERNELS)
def test_output_may_be_quantised(name: str, target: str) -> None:
    rng = np.random.default_rng(4)
    op = convolution(rng, 2, 4, (8, 24), quant=Quant(0.1, 128))
    op.weight[:] = np.rint(op.weight * 4) / 8  # sums are exact, so that codes do not depend on their order
    assert op.bias is not None
    op.bias[:] = np.rint(op.bias * 8) / 8 + 1 / 64
    check([Case(all_kernels()[name], op, [np.rint(normal(rng, *op.x.shape) * 4) / 4])], target)


def test_an_input_without_the_halo_is_refused() -> None:
    op = convolution(np.random.default_rng(0), 2, 2, (8, 8))
    bare = Conv2d(x=Layout(op.x.shape), y=op.y, weight=op.weight, padding=op.padding)
    for name in KERNELS:
        assert "halo" in all_kernels()[name].refuses(bare, load("x86-64-v4"))


def test_wide_images_take_pixels_as_lanes_and_small_ones_channels() -> None:
    rng = np.random.default_rng(0)
    board = load("x86-64-v4")
    assert candidates(convolution(rng, 2, 8, (32, 32)), board)[0][0][0].name == "f32_conv2d_direct"
    assert candidates(convolution(rng, 64, 64, (4, 4)), board)[0][0][0].name == "f32_conv2d_direct_co"
