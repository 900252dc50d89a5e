"""The product of two activations against the reference."""

from __future__ import annotations

import numpy as np

from edgecsi.kernels.variants import all_kernels
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import MatMul
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.harness import Case
from tests.kernels.common import check, normal, on_targets


def product(batch: tuple[int, ...], m: int, k: int, n: int, steps: tuple[Step, ...] = ()) -> MatMul:
    x, b, y = (Layout((*batch, *size)) for size in ((m, k), (k, n), (m, n)))
    return MatMul(x=x, b=b, y=y, epilogue=steps)


def operators() -> list[MatMul]:
    sizes = [
        ((1, 4), 32, 32, 32),
        ((2,), 5, 7, 9),
        ((3, 2), 17, 33, 3),
        ((), 20, 64, 50),
        ((2,), 1, 20, 40),
        ((), 1, 1, 1),
    ]
    scaled = (Step("affine", (0.25, 1.0)), Step("add", operand=Layout((2, 9, 11))))
    return [*(product(*size) for size in sizes), product((2,), 9, 8, 11, scaled)]


@on_targets()
def test_every_shape_matches_the_reference(target: str) -> None:
    rng = np.random.default_rng(2)
    kernel = all_kernels()["f32_matmul"]
    check(
        [Case(kernel, op, [normal(rng, *lay.shape) for lay in op.inputs]) for op in operators()],
        target,
        in_pairs=True,
    )


def test_batches_that_differ_are_refused() -> None:
    op = MatMul(x=Layout((2, 3, 4)), b=Layout((1, 4, 5)), y=Layout((2, 3, 5)))
    assert "batches" in all_kernels()["f32_matmul"].refuses(op, load("rpi4"))
