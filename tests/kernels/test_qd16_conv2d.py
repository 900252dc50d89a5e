"""Int16 convolutions against the reference, bit for bit: shapes, halos, borders, ranges, epilogues, knobs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgecsi.kernels.variants import all_kernels, candidates
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.harness import Case, run_cases
from tests._cpu import skip_without
from tests.kernels.common import X86, available, cases_of_any_knobs, check, normal, on_targets
from tests.kernels.test_f32_conv2d_direct import convolution

KERNELS = {
    name: (all_kernels()[f"qd16_qs16w_{form}avx2"], all_kernels()[f"qd16_qs16w_{form}vnni"])
    for name, form in (("direct", "conv2d_"), ("winograd", "conv2d_winograd_"))
}


def int16(op: Conv2d, rng: np.random.Generator, steps: int = 8191) -> Conv2d:
    """The same convolution with int16 weights, as large as sums of its number allow."""
    most = min(2**29 // steps // op.weight[0].size, 3500)
    weight = rng.integers(-most, most + 1, op.weight.shape).astype(np.int16)
    scale = np.abs(normal(rng, len(weight))) / most + np.float32(1e-5)
    return replace(op, weight=weight, scale=scale, steps=steps)


def kernel(form: str, target: str):
    return KERNELS[form][0 if available(target).dot == "avx2" else 1]


def shapes(rng: np.random.Generator, form: str) -> list[Conv2d]:
    leaky = (Step("leaky_relu", (0.3,)),)
    steps = (
        Step("shift_channels", constants=(normal(rng, 5),)),
        Step("add", operand=Layout((2, 5, 9, 13), halo=(2, 2, 2, 2))),
        Step("mul", operand=Layout((2, 5, 1, 1))),
    )
    operators = [
        convolution(rng, 2, 8, (32, 32), steps=leaky),
        convolution(rng, 16, 2, (32, 32), halo=0, bias=False),
        convolution(rng, 3, 5, (9, 13), n=2, steps=steps),
        convolution(rng, 24, 40, (4, 4), steps=leaky),
        convolution(rng, 1, 1, (2, 4)),
        convolution(rng, 5, 17, (7, 31), halo=2),
        convolution(rng, 33, 3, (3, 130), n=3),
    ]
    if form == "winograd":
        operators = [op for op in operators if op.y.shape[3] >= 8]
    else:
        operators += [
            convolution(rng, 5, 17, (7, 31), (1, 1), halo=2),
            convolution(rng, 7, 7, (32, 32), (1, 9)),
            convolution(rng, 4, 6, (32, 6), (9, 1), n=2),
            convolution(rng, 2, 3, (16, 20), (5, 5), dilation=(2, 3)),
            convolution(rng, 9, 4, (9, 21), (2, 4)),
        ]
    return [int16(op, rng) for op in operators]


@pytest.mark.parametrize("form", KERNELS)
@on_targets(*X86)
def test_every_shape_gives_the_bits_of_the_reference(target: str, form: str) -> None:
    rng = np.random.default_rng(1)
    cases = []
    for number, op in enumerate(shapes(rng, form)):
        if number % 2 and op.x.shape[0] == 1:  # the largest magnitude is given, and passed on
            op = replace(op, x=replace(op.x, peak=True), y=replace(op.y, peak=True))
        x = [normal(rng, *lay.shape) for lay in op.inputs]
        x[0] *= (
            np.float32(10.0 ** rng.integers(-30, 30)) if number % 2 else 1
        )  # a range of its own for every sample
        if number % 3 == 0:
            x[0][0] *= np.float32(0)
        cases.append(Case(kernel(form, target), op, x))
    check(cases, target, tolerance=0.0)


@pytest.mark.parametrize("form", KERNELS)
def test_any_knobs_give_the_same_bits(form: str) -> None:
    rng = np.random.default_rng(3)
    op = int16(convolution(rng, 8, 12, (9, 37), n=2, steps=(Step("relu"),), quant=Quant(0.1, 128)), rng)
    check(cases_of_any_knobs(rng, kernel(form, "x86"), op, "x86", 8), "x86")


@pytest.mark.parametrize("form", KERNELS)
@pytest.mark.parametrize("target", ["x86-64-v3", "host"])
def test_the_largest_sums_fit(target: str, form: str) -> None:
    """All at their limit and of one sign: sums end right below 2^31, or 2^29 where they are transformed."""
    rng = np.random.default_rng(4)
    op = int16(convolution(rng, 4, 2, (8, 16)), rng, steps=8191 if form == "winograd" else 16383)
    limit = (2**29 if form == "winograd" else 2**31) - 1
    op.weight[:] = limit // op.steps // op.weight[0].size
    x = np.ones(op.x.shape, np.float32)
    check([Case(kernel(form, target), op, [x])], target, tolerance=0.0)
    op.weight[:] += 1
    assert "large" in kernel(form, target).refuses(op, load(target))


@pytest.mark.parametrize("form", KERNELS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite_gives_no_number(form: str, bad: float) -> None:
    rng = np.random.default_rng(5)
    skip_without(load("host"))
    op = int16(convolution(rng, 3, 4, (8, 16), n=2), rng)
    x = normal(rng, *op.x.shape)
    x[1, 2, 3, 5] = bad
    _, y, _ = run_cases([Case(kernel(form, "host"), op, [x])], load("host"))[0]
    assert np.isnan(y[1]).all()
    assert np.array_equal(y[0], op.reference(x)[0])


def test_what_it_cannot_is_refused() -> None:
    rng = np.random.default_rng(6)
    plain = convolution(rng, 2, 2, (8, 8))
    for name, op, target in (
        ("fp32 input and int16 weights", plain, "x86"),
        ("strides", int16(convolution(rng, 2, 2, (8, 8), stride=(2, 2)), rng), "x86"),
        ("grouped", int16(convolution(rng, 2, 2, (8, 8), groups=2), rng), "x86"),
        ("the CPU has no int16 products", int16(plain, rng), "rpi5"),
        (
            "32 bits",
            replace(int16(plain, rng), steps=32767, weight=np.full((2, 2, 3, 3), 32767, np.int16)),
            "x86",
        ),
    ):
        found, refused = candidates(op, load(target))
        assert name in " ".join(refused.values())
        assert not any(kernel.name.startswith("qd16") for kernel, _, _ in found)


def test_winograd_is_chosen_where_multiplications_dominate() -> None:
    rng = np.random.default_rng(7)

    def first(ins: int, outs: int) -> str:
        return candidates(int16(convolution(rng, ins, outs, (32, 32)), rng), load("x86-64-v4"))[0][0][0].name

    assert first(8, 16) == "qd16_qs16w_conv2d_winograd_vnni"
    assert first(2, 2) == "qd16_qs16w_conv2d_vnni"
