"""Int16 dense layers against the reference, bit for bit: shapes, ranges, epilogues, knobs, the largest sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecsi.kernels.base import Kernel
from edgecsi.kernels.variants import all_kernels, candidates
from edgecsi.kernels.workload import describe
from edgecsi.ops.dynamic import int16_codes
from edgecsi.ops.integers import sums_fit
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.harness import Case, run_cases
from tests.kernels.common import X86, available, cases_of_any_knobs, check, normal, on_targets

CODES = Quant(0.031, 117, 0.1)


def layer(
    rng: np.random.Generator, rows: int, inputs: int, outputs: int, steps: int = 8191, **more: Any
) -> Dense:
    """A layer whose weights are as large as sums of their number allow."""
    most = min((2**31 - 1) // steps // inputs, 32767)
    bias = normal(rng, outputs) if rng.random() < 0.7 else None
    given = {"x": Layout((rows, inputs)), "y": Layout((rows, outputs)), "bias": bias} | more
    weight = rng.integers(-most, most + 1, (outputs, inputs)).astype(np.int16)
    scale = np.abs(normal(rng, outputs)) / most + np.float32(1e-5)
    return Dense(weight=weight, scale=scale, steps=steps, **given)


def kernel(target: str) -> Kernel:
    return all_kernels()[f"qd16_qs16w_dense_{'avx2' if available(target).dot == 'avx2' else 'vnni'}"]


def shapes(rng: np.random.Generator) -> list[Dense]:
    image = Layout((1, 2, 5, 7), halo=(1, 1, 1, 1))
    of_image = (Step("add", operand=Layout((1, 2, 5, 7), halo=(2, 2, 2, 2))), Step("relu"))
    gate = (Step("add", operand=Layout((13, 40))), Step("gelu"))
    random = [layer(rng, *(int(n) for n in rng.integers(1, (40, 140, 70)))) for _ in range(6)]
    return [
        layer(rng, 32, 128, 128, epilogue=(Step("relu"),)),
        layer(rng, 1, 2048, 33, steps=1023),
        layer(rng, 3, 1, 1, steps=32767),
        layer(rng, 5, 3, 17, y_quant=CODES, y=Layout((5, 17), "uint8")),
        layer(rng, 13, 66, 40, epilogue=gate),
        layer(rng, 2, 45, 96, x=Layout((2, 45), batch_stride=100), y=Layout((2, 96), batch_stride=131)),
        layer(rng, 1, 40, 70, y=image, epilogue=of_image),
        *random,
    ]


@on_targets(*X86)
def test_every_shape_gives_the_bits_of_the_reference(target: str) -> None:
    rng = np.random.default_rng(1)
    cases = []
    for op in shapes(rng):
        x = [normal(rng, *lay.shape) for lay in op.inputs]
        # a range of its own for every row, from next to nothing to next to infinity
        x[0] *= np.float32(10.0) ** rng.integers(-37, 37, (len(x[0]), 1)).astype(np.float32)
        if any(s.op == "gelu" for s in op.epilogue):  # exact but for its polynomial
            x[0] = normal(rng, *op.x.shape)
        x[0][0] *= np.float32(len(cases) % 3)
        x[0] = np.clip(x[0], -3e38, 3e38)
        cases.append(Case(kernel(target), op, x))
    exact = [case for case in cases if all(s.op != "gelu" for s in case.op.epilogue)]
    check(exact, target, tolerance=0.0)
    check([case for case in cases if case not in exact], target)


def test_any_knobs_give_the_same_bits() -> None:
    rng = np.random.default_rng(3)
    op = layer(rng, 13, 50, 77, epilogue=(Step("relu"),))
    check(cases_of_any_knobs(rng, kernel("x86"), op, "x86", 12), "x86", 0.0)


@on_targets("x86-64-v3", "host")
def test_the_largest_sums_fit(target: str) -> None:
    """All at their limit, of either sign: sums end right below 2^31."""
    rng = np.random.default_rng(4)
    op = layer(rng, 2, 128, 3, steps=16383)
    op.weight[:] = (2**31 - 1) // op.steps // 128
    op.weight[1] *= -1
    x = np.ones(op.x.shape, np.float32)
    x[1] = -1
    check([Case(kernel(target), op, [x])], target, tolerance=0.0)
    op.weight[2] += 1
    assert not sums_fit(op)
    assert "32 bits" in kernel(target).refuses(op, load(target))


@on_targets("x86-64-v3", "host")
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gives_no_number(bad: float, target: str) -> None:
    rng = np.random.default_rng(5)
    board = available(target)
    op = layer(rng, 9, 37, 20)
    op.weight[:, 30] = 0
    x = normal(rng, *op.x.shape)
    x[3, 30], x[8, 36] = bad, bad
    _, y, _ = run_cases([Case(kernel(target), op, [x])], board)[0]
    assert np.isnan(y[[3, 8]]).all()
    np.testing.assert_array_equal(y, op.reference(x))


def test_codes_reach_the_limit_and_no_further() -> None:
    x = np.array([[-7.5, 7.5, 3.75, 0.1], [1e-38, 0, 0, 0], [3.4e38, -1, 0, 0]], np.float32)
    codes, unit = int16_codes(x, 16383)
    assert codes[0].tolist() == [-16383, 16383, 8191, 218]
    assert not codes[1].any()
    assert codes[2].tolist() == [16383, 0, 0, 0]
    assert np.isfinite(unit).all()


def test_what_it_cannot_is_refused() -> None:
    rng = np.random.default_rng(6)
    op = layer(rng, 4, 8, 8)
    for reason, target, more in (
        ("no int16 products", "rpi5", {}),
        ("side by side", "x86", {"x": Layout((4, 2, 2, 2), halo=(1, 1, 1, 1))}),
        ("fp32 input and int16 weights", "x86", {"steps": 0}),
    ):
        found, refused = candidates(Dense(**{**vars(op), **more}), load(target))
        assert reason in " ".join(why for name, why in refused.items() if name.startswith("qd16"))
        assert not any(one.name.startswith("qd16") for one, _, _ in found)


def test_a_layer_without_codes_is_the_same_work_as_ever() -> None:
    """Records that were kept of dense layers before they had steps still count."""
    rng = np.random.default_rng(7)
    op = layer(rng, 1, 8, 8)
    assert describe(op)["steps"] == 8191
    assert "steps" not in describe(Dense(**{**vars(op), "steps": 0}))
