"""Dense layers in half precision against the reference, bit for bit: shapes, ranges, epilogues, knobs, what is not
finite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgecsi.codegen.compile import compile_module
from edgecsi.kernels.variants import all_kernels, candidates
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense, Half, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.cycles import hot_loop
from edgecsi.tune.harness import Case
from tests.kernels.common import available, cases_of_any_knobs, check, normal
from tests.kernels.guarded import run_guarded

Array = np.ndarray[Any, Any]
KERNEL = all_kernels()["f16_dense"]
TARGET = "rpi5"


def layer(rng: np.random.Generator, rows: int, inputs: int, outputs: int, **more: Any) -> Dense:
    bias = normal(rng, outputs) if rng.random() < 0.7 else None
    scale = np.exp2(rng.integers(-3, 4, outputs)) if rng.random() < 0.7 else np.ones(outputs)
    given = {"x": Layout((rows, inputs), "float16"), "y": Layout((rows, outputs)), "bias": bias} | more
    weight = normal(rng, outputs, inputs) / np.float32(np.sqrt(inputs))
    if rng.random() < 0.3:
        weight *= rng.random(weight.shape) < 0.5
    return Dense(weight=weight.astype(np.float16), scale=scale.astype(np.float32), **given)


def inputs(op: Dense, rng: np.random.Generator) -> list[Array]:
    x, *more = (normal(rng, *layout.shape) for layout in op.inputs)
    # a size of its own for every row, from the least numbers of half precision on
    x *= np.float32(2.0) ** rng.integers(-20, 9, (len(x), 1)).astype(np.float32)
    return [x.astype(np.float16), *more]


def shapes(rng: np.random.Generator) -> list[Dense]:
    image = Layout((1, 2, 5, 7), halo=(1, 1, 1, 1))
    of_image = (Step("add", operand=Layout((1, 2, 5, 7), halo=(2, 2, 2, 2))), Step("relu"))
    gate = (Step("add", operand=Layout((13, 40))), Step("leaky_relu", (0.3,)))
    halves = Layout((1, 2, 16, 16), "float16", (1, 1, 1, 1))
    strided = {"x": Layout((2, 45), "float16", batch_stride=100), "y": Layout((2, 96), batch_stride=131)}
    return [
        layer(rng, 32, 128, 128, epilogue=(Step("relu"),)),
        layer(rng, 1, 2048, 33),
        layer(rng, 3, 1, 1),
        layer(rng, 5, 3, 17, y_quant=Quant(0.031, 117, 0.1), y=Layout((5, 17), "uint8")),
        layer(rng, 13, 66, 40, epilogue=gate),
        layer(rng, 4, 40, 70, y_quant=Half(0.25), y=Layout((4, 70), "float16")),
        layer(rng, 2, 45, 96, **strided),
        layer(rng, 1, 40, 70, y=image, epilogue=of_image),
        layer(rng, 1, 96, 512, y=halves, y_quant=Half(2.0)),
        *(layer(rng, *(int(n) for n in rng.integers(1, (40, 140, 70)))) for _ in range(8)),
    ]


def test_every_shape_gives_the_bits_of_the_reference() -> None:
    rng = np.random.default_rng(1)
    check([Case(KERNEL, op, inputs(op, rng)) for op in shapes(rng)], TARGET, tolerance=0.0)


def test_any_knobs_give_the_same_bits() -> None:
    rng = np.random.default_rng(2)
    op = layer(rng, 13, 77, 90, epilogue=(Step("relu"),))
    x = inputs(op, rng)
    cases = [replace(case, inputs=x) for case in cases_of_any_knobs(rng, KERNEL, op, TARGET, 10)]
    check(cases, TARGET, tolerance=0.0)


def test_what_is_not_finite_stays_in_its_row() -> None:
    rng = np.random.default_rng(3)
    op = layer(rng, 9, 70, 20)
    op.weight[:, 30] = 0
    x = inputs(op, rng)[0]
    x[3, 30], x[5, 69], x[8, 1] = np.nan, np.inf, -np.inf
    x[6] = 6e4  # sums end where half precision does
    got = op.y.read(run_guarded([Case(KERNEL, op, [x])], available(TARGET))[0])
    np.testing.assert_array_equal(got, op.reference(x))
    assert np.isnan(got[3]).all()
    assert not np.isfinite(got[[5, 8]]).any()
    assert np.isfinite(got[[0, 1, 2, 4, 7]]).all()


def test_weights_are_loaded_in_pairs() -> None:
    rng, board = np.random.default_rng(5), load(TARGET)
    for op in (layer(rng, 1, 64, 512), layer(rng, 32, 128, 128)):
        code = compile_module({"kernel": KERNEL.emit(op, board, KERNEL.knobs(op, board))}, board)
        loop = [line.split()[0] for line in hot_loop(code.inspect_source("asm"))]
        assert loop.count("ldp") > 4 * loop.count("ldr")
        assert len(loop) < 1.7 * (loop.count("fmla") + loop.count("fmul"))


def test_it_is_chosen_on_cpus_that_have_it_and_refused_by_name_elsewhere() -> None:
    rng = np.random.default_rng(4)
    op = layer(rng, 4, 64, 64)
    assert candidates(op, load(TARGET))[0][0][0] is KERNEL
    for reason, target, more in (
        ('no half-precision arithmetic (half = "" in rpi4)', "rpi4", {}),
        ("int16 is as fast", "x86", {}),
        ("side by side", TARGET, {"x": Layout((4, 1, 8, 8), "float16", halo=(1, 1, 1, 1))}),
        ("input and weights in half precision", TARGET, {"x": Layout((4, 64))}),
    ):
        found, refused = candidates(Dense(**{**vars(op), **more}), load(target))
        assert reason in refused["f16_dense"]
        assert not found
