"""Layer normalisation against the reference, also of rows far from zero."""

from __future__ import annotations

import numpy as np

from edgecsi.kernels.variants import all_kernels
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import LayerNorm
from edgecsi.ops.steps import Step
from edgecsi.tune.harness import Case
from tests.kernels.common import check, normal, on_targets


@on_targets()
def test_every_row_length_matches_the_reference(target: str) -> None:
    rng = np.random.default_rng(2)
    kernel = all_kernels()["f32_layer_norm"]
    cases = []
    for shape in ((1, 32, 64), (5, 100), (5, 7), (4, 2), (3, 600)):
        gamma, beta = normal(rng, shape[-1]), normal(rng, shape[-1])
        op = LayerNorm(x=Layout(shape), y=Layout(shape), gamma=gamma, beta=beta, eps=1e-3)
        cases.append(Case(kernel, op, [normal(rng, *shape) * 3 + 10]))
    shape = (3, 37)
    bare = LayerNorm(
        x=Layout(shape), y=Layout(shape), epilogue=(Step("add", operand=Layout(shape)), Step("relu"))
    )
    cases.append(Case(kernel, bare, [normal(rng, *shape), normal(rng, *shape)]))
    only_beta = LayerNorm(x=Layout(shape), y=Layout(shape), beta=normal(rng, 37))
    cases.append(Case(kernel, only_beta, [normal(rng, *shape)]))
    check(cases, target)
