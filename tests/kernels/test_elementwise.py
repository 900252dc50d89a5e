"""Copies between layouts: halos, groups, changes of shape, activations, sums."""

from __future__ import annotations

import numpy as np
import pytest

from edgecsi.kernels.variants import all_kernels
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Elementwise, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.harness import Case
from tests.kernels.common import check, normal, on_targets

PER_CHANNEL = (
    Step("scale_channels", constants=(np.linspace(0.5, 1.1, 3, dtype=np.float32),)),
    Step("shift_channels", constants=(np.linspace(1.4, 2, 3, dtype=np.float32),)),
)


@on_targets("x86-64-v3", "host", "rpi4")
def test_layouts_and_epilogues(target: str) -> None:
    rng = np.random.default_rng(0)
    image, flat, halo = Layout((2, 3, 5, 7)), Layout((2, 105)), Layout((2, 3, 5, 7), halo=(1, 2, 1, 1))
    gate = Layout((2, 3, 1, 1))
    quant = Quant(0.02, 128, 0.5)
    codes = Layout((2, 3, 5, 7), "uint8", (1, 1, 1, 1), 4, fill=128)
    ops = [
        Elementwise(x=image, y=halo, epilogue=(Step("leaky_relu", (0.3,)), Step("add", operand=halo))),
        Elementwise(x=halo, y=image, epilogue=(*PER_CHANNEL, Step("mul", operand=gate))),
        Elementwise(x=halo, y=flat, epilogue=(Step("relu"), Step("add", operand=flat))),
        Elementwise(x=flat, y=halo, epilogue=(Step("sigmoid"), *PER_CHANNEL)),
        Elementwise(x=flat, y=codes, y_quant=quant),
        Elementwise(x=halo, y=codes, y_quant=quant, epilogue=PER_CHANNEL),
        Elementwise(x=Layout((4, 3)), y=Layout((4, 3)), epilogue=PER_CHANNEL),
        Elementwise(x=Layout((2, 3, 9)), y=Layout((2, 3, 9)), epilogue=(*PER_CHANNEL, Step("tanh"))),
    ]
    kernel = all_kernels()["elementwise"]
    cases = [Case(kernel, op, [normal(rng, *lay.shape) for lay in op.inputs]) for op in ops]
    plain = Layout(codes.shape, "uint8")
    for x, y in ((plain, codes), (codes, plain), (plain, Layout(codes.shape, "uint8", (2, 0, 1, 0), fill=7))):
        given = rng.integers(0, 256, x.shape, np.uint8)
        cases.append(Case(kernel, Elementwise(x=x, y=y), [given]))
    check(cases, target)


def test_numbers_are_never_stored_as_codes() -> None:
    shape = (1, 2, 4, 4)
    with pytest.raises(ValueError, match="codes need a quantisation"):
        Elementwise(x=Layout(shape), y=Layout(shape, "uint8"))


@pytest.mark.parametrize("epilogue", [(), PER_CHANNEL])
def test_refuses_what_it_cannot_index(epilogue: tuple[Step, ...]) -> None:
    halo = Layout((2, 3, 4, 6), halo=(1, 1, 1, 1))
    y = Layout((2, 72)) if epilogue else Layout((2, 6, 2, 6), halo=(1, 1, 1, 1))
    kernel = all_kernels()["elementwise"]
    assert kernel.refuses(Elementwise(x=halo, y=y, epilogue=epilogue), load("rpi4"))
