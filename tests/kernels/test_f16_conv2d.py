"""Convolutions in half precision against the reference, bit for bit: shapes, strides, halos, epilogues, knobs, densities,
what is not finite."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from edgecsi.kernels.variants import all_kernels, candidates
from edgecsi.ops import half as half_sums
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d, Half, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.harness import Case
from tests.kernels.common import available, cases_of_any_knobs, check, normal
from tests.kernels.guarded import run_guarded
from tests.kernels.test_f32_conv2d_direct import convolution

Array = np.ndarray[Any, Any]
KERNELS = {form: all_kernels()[f"f16_conv2d_{form}"] for form in ("direct", "winograd")}
TARGET = "rpi5"


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
    outs = 8 if form == "winograd" else 5
    steps = (
        Step("shift_channels", constants=(normal(rng, outs),)),
        Step("add", operand=Layout((2, outs, 14, 12), halo=(2, 2, 2, 2))),
        Step("prelu", constants=(np.abs(normal(rng, outs)),)),
        Step("mul", operand=Layout((2, outs, 1, 1))),
        Step("mul", operand=Layout((2, 1, 14, 12))),
    )
    if form == "winograd":
        return [
            half(convolution(rng, 8, 16, (32, 32), steps=leaky), rng, gain=1.0),
            half(convolution(rng, 4, 8, (32, 32), steps=leaky), rng, fills=True, gain=4.0),
            half(convolution(rng, 6, 9, (2, 8), halo=0, bias=False), rng),
            half(convolution(rng, 8, 40, (4, 10), steps=leaky), rng, fills=True),
            half(convolution(rng, 5, 17, (6, 30), halo=2), rng, gain=0.25),
            half(convolution(rng, 7, 8, (4, 130), n=3), rng),
            half(convolution(rng, 4, 8, (8, 22), quant=Quant(0.05, 128)), rng),
            half(convolution(rng, 5, 8, (14, 12), n=2, steps=steps), rng, fills=True),
        ]
    return [
        half(convolution(rng, 2, 8, (32, 32), steps=leaky), rng, fills=True, gain=4.0),
        half(convolution(rng, 8, 16, (33, 32), steps=leaky), rng, gain=1.0),
        half(convolution(rng, 6, 2, (32, 32), halo=0, bias=False), rng),
        half(convolution(rng, 8, 40, (4, 6), steps=leaky), rng),
        half(convolution(rng, 5, 17, (7, 31), halo=2), rng, gain=0.25),
        half(convolution(rng, 7, 3, (3, 130), n=3), rng),
        half(convolution(rng, 4, 6, (8, 21), quant=Quant(0.05, 128)), rng),
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
        half(convolution(rng, 5, 5, (14, 12), n=2, steps=steps), rng, fills=True),
    ]


def inputs(op: Conv2d, rng: np.random.Generator) -> list[Array]:
    x, *more = (normal(rng, *layout.shape) for layout in op.inputs)
    return [x.astype(np.float16), *more]


@pytest.mark.parametrize("form", KERNELS)
def test_every_shape_gives_the_bits_of_the_reference(form: str) -> None:
    rng = np.random.default_rng(1)
    check([Case(KERNELS[form], op, inputs(op, rng)) for op in shapes(rng, form)], TARGET, tolerance=0.0)


@pytest.mark.parametrize("form", KERNELS)
def test_any_knobs_and_density_give_the_same_bits(form: str) -> None:
    rng = np.random.default_rng(2)
    height = 10 if form == "winograd" else 9
    op = half(convolution(rng, 8, 12, (height, 38), n=2, steps=(Step("relu"),)), rng, gain=0.5)
    cases = []
    for number, case in enumerate(cases_of_any_knobs(rng, KERNELS[form], op, TARGET, 8)):
        zeros = rng.random(op.weight.shape) < number / 7
        sparse = replace(op, weight=np.where(zeros, np.float16(0), op.weight))
        cases.append(replace(case, op=sparse, inputs=inputs(op, rng)))
    check(cases, TARGET, tolerance=0.0)


@pytest.mark.parametrize("form", KERNELS)
def test_what_is_not_finite_goes_where_the_reference_has_it(form: str) -> None:
    """It reaches the pixels whose filter sees it, or those of its tile; what half precision cannot hold is infinite."""
    rng = np.random.default_rng(3)
    op = half(convolution(rng, 4, 8 if form == "winograd" else 4, (10, 16), n=4), rng)
    x = inputs(op, rng)[0]
    x[0, 1, 3, 5], x[1, 2, 9, 15], x[2, 0, 0, 0] = np.nan, np.inf, -np.inf
    x[3] = 6e4
    op.weight[:] = np.abs(op.weight) + np.float16(0.5)
    got = op.y.read(run_guarded([Case(KERNELS[form], op, [x])], available(TARGET))[0])
    want = op.reference(x)
    np.testing.assert_array_equal(got, want)
    assert np.isnan(want[0, :, 2:5, 4:7]).all()
    assert np.isfinite(want[:2, :, :1, :3]).all()
    if form == "direct":
        assert (want[3] == np.inf).all()


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


def test_winograd_is_the_form_of_what_it_pays_for() -> None:
    rng = np.random.default_rng(5)

    def first(ins: int, outs: int, shape: tuple[int, int] = (32, 32)) -> str:
        return candidates(half(convolution(rng, ins, outs, shape), rng), load(TARGET))[0][0][0].name

    assert first(8, 16) == "f16_conv2d_winograd"
    assert {first(16, 8), first(2, 8), first(8, 16, (31, 32)), first(8, 16, (32, 4))} == {"f16_conv2d_direct"}


def test_a_product_and_its_addition_are_rounded_once() -> None:
    """Against exact fractions, at and beside the middle between two numbers, and where half precision ends."""
    rng = np.random.default_rng(6)
    x, w, total = (normal(rng, 4000).astype(np.float16).astype(np.float32) for _ in range(3))
    w[:2000] = np.exp2(rng.integers(-14, 4, 2000))  # sums that lie right between two numbers
    total[2000:] *= np.float32(64)
    total = total.astype(np.float16).astype(np.float32)
    x[-1], w[-1], total[-1] = 300, 300, 1
    found = half_sums.fused(total, x, w)
    for a, b, c, y in zip(x.tolist(), w.tolist(), total.tolist(), found.tolist(), strict=True):
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        near = np.float16(y)
        if np.isinf(near):
            assert exact >= 65520
            continue
        off = abs(Fraction(float(near)) - exact)
        for other in (np.nextafter(near, np.float16(np.inf)), np.nextafter(near, np.float16(-np.inf))):
            further = abs(Fraction(float(other)) - exact)
            assert off < further or (off == further and int(near.view(np.int16)) % 2 == 0)
    assert np.isinf(found[-1])
