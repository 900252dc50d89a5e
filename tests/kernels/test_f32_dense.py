"""The dense layer against the reference: sizes that fit no vector, batches, images as outputs, epilogues."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgecsi.kernels.variants import all_kernels
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.harness import Case
from tests.kernels.common import cases_of_any_knobs, check, normal, on_targets


def dense(
    rng: np.random.Generator,
    inputs: int,
    outputs: int,
    n: int = 1,
    *,
    y: Layout | None = None,
    steps: tuple[Step, ...] = (),
    bias: bool = True,
) -> Dense:
    return Dense(
        x=Layout((n, inputs)),
        y=y or Layout((n, outputs)),
        weight=normal(rng, outputs, inputs),
        bias=normal(rng, outputs) if bias else None,
        epilogue=steps,
    )


def operators() -> list[Dense]:
    rng = np.random.default_rng(1)
    slopes = Step("prelu", constants=(normal(rng, 130),))
    image = (Step("add", operand=Layout((3, 3, 7, 13))), Step("prelu", constants=(normal(rng, 3),)))
    gates = (Step("mul", operand=Layout((1, 4, 1, 1))), Step("tanh"))
    return [
        dense(rng, 300, 512, steps=(Step("relu"),)),
        dense(rng, 37, 7),
        dense(rng, 7, 37, bias=False),
        dense(rng, 129, 2),
        dense(rng, 1, 1),
        dense(rng, 3, 1, 5),
        dense(rng, 100, 130, 5, steps=(slopes,)),
        dense(rng, 64, 96, 64),
        dense(rng, 2048, 40),
        dense(rng, 517, 50, 3),
        dense(rng, 33, 50, 3),
        dense(rng, 40, 2048, y=Layout((1, 2, 32, 32), halo=(1, 1, 1, 1))),
        dense(rng, 50, 273, 3, y=Layout((3, 3, 7, 13), halo=(2, 2, 2, 2)), steps=image),
        dense(rng, 20, 4 * 8 * 8, y=Layout((1, 4, 8, 8)), steps=gates),
        dense(rng, 20, 24, 2, y=Layout((2, 24), batch_stride=60)),
    ]


@on_targets()
def test_every_shape_matches_the_reference(target: str) -> None:
    rng = np.random.default_rng(2)
    kernel = all_kernels()["f32_dense"]
    check(
        [Case(kernel, op, [normal(rng, *lay.shape) for lay in op.inputs]) for op in operators()],
        target,
        in_pairs=True,
    )


@on_targets()
def test_long_sums_that_the_bias_cancels_keep_their_digits(target: str) -> None:
    """As in an encoder, whose inputs are all near one value: the sums grow to twenty times what is left of them."""
    rng = np.random.default_rng(4)
    op = dense(rng, 2048, 64)
    weight = op.weight + np.float32(0.05)
    op = replace(op, weight=weight, bias=-weight.sum(1))
    x = 1 + normal(rng, *op.x.shape) / 10
    check([Case(all_kernels()["f32_dense"], op, [x])], target, tolerance=5e-6)


@on_targets("host", "rpi4")
def test_any_knobs_give_the_same_answer(target: str) -> None:
    rng = np.random.default_rng(3)
    kernel = all_kernels()["f32_dense"]
    op = dense(rng, 37, 72, 6)
    check(cases_of_any_knobs(rng, kernel, op, target, 8), target)


def test_weights_are_one_stream_without_waste() -> None:
    rng = np.random.default_rng(0)
    kernel, board = all_kernels()["f32_dense"], load("x86-64-v4")
    op = dense(rng, 2048, 512)
    (stream,) = kernel.constants(op, board, kernel.knobs(op, board))
    assert stream.size == 512 * 2049
