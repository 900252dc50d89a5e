"""Softmax against the reference, also where exp alone would overflow."""

from __future__ import annotations

import numpy as np

from edgecsi.kernels.variants import all_kernels
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Softmax
from edgecsi.ops.steps import Step
from edgecsi.tune.harness import Case
from tests.kernels.common import check, normal, on_targets


@on_targets()
def test_every_row_length_matches_the_reference(target: str) -> None:
    rng = np.random.default_rng(2)
    kernel = all_kernels()["f32_softmax"]
    shapes = [(2, 4, 32, 32), (3, 100), (5, 7), (2, 3), (4, 1), (2, 1000), (1, 3, 19)]
    cases = [Case(kernel, Softmax(x=Layout(s), y=Layout(s)), [normal(rng, *s) * 10]) for s in shapes]
    image = (2, 4, 5, 19)
    steps = (Step("affine", (2.0, 1.0)), Step("mul", operand=Layout(image)))
    inside = Softmax(x=Layout(image, halo=(1, 1, 1, 1)), y=Layout(image, halo=(0, 0, 2, 2)), epilogue=steps)
    cases.append(Case(kernel, inside, [normal(rng, *image), normal(rng, *image)]))
    large = Softmax(x=Layout((2, 21)), y=Layout((2, 21)))
    cases.append(Case(kernel, large, [np.linspace(-3e4, 3e4, 42, dtype=np.float32).reshape(2, 21)]))
    check(cases, target)
