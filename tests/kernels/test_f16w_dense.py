"""Half-precision weights: the kernels that store them answer what the fp32 ones do, for weights that fit."""

from __future__ import annotations

import numpy as np
import pytest

from edgecsi.kernels.variants import all_kernels, candidates
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.harness import Case
from tests.kernels.common import check, normal, on_targets

KERNELS = [name for name in all_kernels() if name.startswith("f32_f16w")]
SHAPES = ((1, 128, 64), (3, 45, 37), (1, 5, 1), (2, 64, 130), (1, 600, 19), (9, 33, 16))


def layer(
    rng: np.random.Generator, samples: int, inputs: int, outputs: int, density: float = 1.0, bias: bool = True
) -> Dense:
    weight = normal(rng, outputs, inputs).astype(np.float16).astype(np.float32)
    kept = np.repeat(rng.random((-(-outputs // 16), inputs)) < density, 16, 0)[:outputs]
    weight = weight * kept
    weight[0, 0] = np.float32(np.finfo(np.float16).tiny / 4)  # a subnormal one
    return Dense(
        name="fc", x=Layout((samples, inputs)), y=Layout((samples, outputs)), weight=weight,
        bias=normal(rng, outputs) if bias else None, epilogue=(Step("leaky_relu", (0.3,)),),
    )  # fmt: skip


@on_targets()
@pytest.mark.parametrize("name", KERNELS)
def test_every_shape_and_density_matches_the_reference(name: str, target: str) -> None:
    rng = np.random.default_rng(1)
    kernel, board = all_kernels()[name], load(target)
    cases = []
    for samples, inputs, outputs in SHAPES:
        for density in (0.1, 0.5, 1.0):
            op = layer(rng, samples, inputs, outputs, density, bias=density < 1)
            if not kernel.refuses(op, board):
                cases.append(Case(kernel, op, [normal(rng, samples, inputs)]))
    assert len(cases) >= 5
    check(cases, target, in_pairs=True)


def test_weights_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(2)
    for value in (1.0 + 2**-12, 1e5, 1e-9):
        op = layer(rng, 1, 64, 32)
        op.weight[1, 1] = value
        for name in KERNELS:
            assert "half-precision" in all_kernels()[name].refuses(op, load("x86")), (name, value)


@pytest.mark.parametrize("target", ["x86", "x86-64-v4", "rpi4", "rpi5"])
def test_they_are_chosen_where_bytes_are_the_time(target: str) -> None:
    op = layer(np.random.default_rng(3), 1, 2048, 512)
    first, second = candidates(op, load(target))[0][:2]
    assert first[0].name.startswith("f32_f16w")
    assert first[2].bytes < 0.55 * 4 * op.weight.size
    assert second[2].seconds >= first[2].seconds
