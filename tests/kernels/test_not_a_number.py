"""Not-a-number and infinity go through every kernel as through PyTorch; where codes are made of them, by one rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edgecsi.kernels.base import Kernel
from edgecsi.kernels.variants import all_kernels
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import (
    Conv2d,
    Dense,
    Elementwise,
    LayerNorm,
    MatMul,
    Op,
    Pool2d,
    Quant,
    QuantizeWide,
    Softmax,
)
from edgecsi.ops.steps import Step, apply_step
from edgecsi.target import Target
from edgecsi.tune.harness import Case
from tests.kernels.common import available, describe, on_targets
from tests.kernels.dense_cases import int8_layer, int8_weight, kernels_for, mask, rng_of, some
from tests.kernels.guarded import run_guarded
from tests.kernels.test_dense_float import FLOAT, layer_for

Array = np.ndarray[Any, Any]
NAN, INF = np.float32(np.nan), np.float32(np.inf)
SPECIAL = np.array([NAN, -NAN, INF, -INF, 0.0, -0.0, 3e38, -3e38, 1e-45, 0.5, -2.5, 7.0], np.float32)
QUANT = Quant(0.037, 117, 0.1)
SLOPES = np.array([0.0, 0.25, -1.5], np.float32)

# Every step with one input, and what PyTorch calls it.
UNARY: list[tuple[Step, Callable[[torch.Tensor], torch.Tensor]]] = [
    *((Step("leaky_relu", (s,)), lambda x, s=s: F.leaky_relu(x, s)) for s in (0.0, 0.3, 1.0, 1.5, -0.5)),
    (Step("relu"), F.relu),
    (Step("relu6"), F.relu6),
    (Step("clip", (-1.0, 2.0)), lambda x: x.clamp(-1, 2)),
    (Step("hard_sigmoid"), F.hardsigmoid),
    (Step("prelu", constants=(SLOPES,)), lambda x: F.prelu(x, torch.from_numpy(SLOPES))),
    (Step("affine", (0.0, 1.0)), lambda x: x * 0 + 1),
    (Step("neg"), torch.neg),
    (Step("abs"), torch.abs),
    (Step("sqrt"), torch.sqrt),
    (Step("rsqrt"), torch.rsqrt),
    (Step("exp"), torch.exp),
    (Step("sigmoid"), torch.sigmoid),
    (Step("tanh"), torch.tanh),
    (Step("gelu"), lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5))),
    (Step("silu"), F.silu),
    (Step("elu", (0.7,)), lambda x: F.elu(x, 0.7)),
    (Step("softplus"), lambda x: F.softplus(x, threshold=200)),
]
BINARY = {
    "add": torch.add, "sub": torch.sub, "rsub": lambda x, y: y - x, "mul": torch.mul,
    "max": torch.maximum, "min": torch.minimum,
}  # fmt: skip
IMAGE = (2, 3, 4, 19)
DENSE = (*FLOAT, "f32_f16w", "f32_dense")
INT8 = ("qd8_", "qs8_qs8w")
CONV = {"avx2": "x86-64-v3", "maddubs": "x86-64-v3", "vnni": "x86-64-v4", "neon": "rpi4", "sdot": "rpi5"}
OTHERS = {
    "elementwise", "quantize_wide", "f32_softmax", "f32_layer_norm", "f32_matmul", "f32_pool2d", "f32_conv2d_direct",
    "f32_conv2d_direct_co", *(k for k in all_kernels() if k.startswith("f32_conv2d_winograd")),  # these think in tiles
}  # fmt: skip


def poisoned(rng: np.random.Generator, *shape: int, share: float = 0.2) -> Array:
    """Random numbers, some of them special."""
    values = rng.standard_normal(shape).astype(np.float32)
    return np.where(
        rng.random(shape) < share, rng.choice(SPECIAL if share >= 0.2 else SPECIAL[:6], shape), values
    )


def same(got: Array, want: Array, tolerance: float) -> Array:
    """Where two arrays agree: not-a-number with its like, infinity by sign, else within a tolerance."""
    with np.errstate(all="ignore"):
        near = np.abs(got - want) <= tolerance * np.maximum(np.abs(want), 1)
    return (np.isnan(got) & np.isnan(want)) | (got == want) | near


@pytest.mark.parametrize(("step", "torchs"), UNARY, ids=lambda v: getattr(v, "op", ""))
def test_the_reference_of_a_step_is_pytorchs(
    step: Step, torchs: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    x = np.broadcast_to(SPECIAL, (2, 3, 1, SPECIAL.size)).copy()
    with np.errstate(all="ignore"):
        got = apply_step(step, x)
    want = torchs(torch.from_numpy(x)).numpy()
    assert same(got, want, 1e-5).all(), (x[~same(got, want, 1e-5)], got, want)


@pytest.mark.parametrize("op", BINARY)
def test_the_reference_of_a_step_with_two_inputs_is_pytorchs(op: str) -> None:
    x, y = (a.reshape(1, 1, 1, -1).copy() for a in np.meshgrid(SPECIAL, SPECIAL))
    with np.errstate(all="ignore"):
        got = apply_step(Step(op, operand=Layout(x.shape)), x, y)
    assert same(got, BINARY[op](torch.from_numpy(x), torch.from_numpy(y)).numpy(), 1e-6).all()


def expect(cases: list[Case], target: str, tolerance: float = 2e-5) -> None:
    """Run all cases and compare with their references.

    A sparse matrix does not look at inputs whose weights are 0, or multiplies them with fillers: there a sum may or may
    not have 0 times infinity in it, which is not a number.
    """
    board = available(target)
    for case, memory in zip(cases, run_guarded(cases, board), strict=True):
        assert case.kernel.refuses(case.op, board) == "", describe(case)
        got = case.op.y.read(memory)
        with np.errstate(all="ignore"):
            fine = same(got, case.op.reference(*case.inputs), tolerance)
            if isinstance(case.op, Dense) and not fine.all():
                sparse = _without_zeros(case.op, *case.inputs)
                fine |= same(got, sparse, tolerance) | (np.isinf(sparse) & np.isnan(got))
        assert fine.all(), f"{describe(case)} on {target}: {np.argwhere(~fine)[:5]}, {got[~fine][:5]}"


def _without_zeros(op: Dense, *inputs: Array) -> Array:
    weight = op.dense_weight().astype(np.float64)
    x = inputs[0].reshape(op.x.shape[0], -1).astype(np.float64)
    products = np.where(weight == 0, 0, x[:, None] * weight)
    y = products.sum(-1) * (1 if op.scale is None else op.scale)
    y = y + (0 if op.bias is None else op.bias)
    for step in op.epilogue:
        y = apply_step(step, y.astype(np.float32))
    return y.astype(np.float32).reshape(op.y.shape)


@on_targets("x86-64-v3", "host", "rpi4")
def test_steps(target: str) -> None:
    """As vectors, as single numbers, and into codes."""
    rng = np.random.default_rng(0)
    cases = []
    steps = [step for step, _ in UNARY] + [Step(op, operand=Layout(IMAGE)) for op in BINARY]
    for number, step in enumerate(steps):
        exact = step.op not in ("exp", "sigmoid", "tanh", "gelu", "silu", "elu", "softplus", "rsqrt")
        for y, quant in (
            (Layout(IMAGE), None),
            (Layout(IMAGE, "uint8", (1, 1, 1, 1), (1, 2, 4)[number % 3]), QUANT),
        ):
            if quant is not None and not exact:
                continue  # a polynomial may round to another code
            op = Elementwise(x=Layout(IMAGE), y=y, epilogue=(step,), y_quant=quant)
            inputs = [poisoned(rng, *IMAGE) for _ in op.inputs]
            cases.append(Case(all_kernels()["elementwise"], op, inputs))
    expect(cases, target)


def _fp32(rng: np.random.Generator) -> list[Case]:
    kernels, cases = all_kernels(), []

    def add(name: str, op: Op) -> None:
        cases.append(Case(kernels[name], op, [poisoned(rng, *lay.shape, share=0.03) for lay in op.inputs]))

    for shape in ((7, 37), (2, 3, 5), (2, 40)):
        add("f32_softmax", Softmax(x=Layout(shape), y=Layout(shape)))
        add("f32_layer_norm", LayerNorm(x=Layout(shape), y=Layout(shape), epilogue=(Step("relu"),)))
    add("f32_matmul", MatMul(x=Layout((2, 9, 8)), b=Layout((2, 8, 11)), y=Layout((2, 9, 11))))
    for kind in ("max", "avg"):
        for window, stride, size in (
            ((2, 2), (2, 2), (4, 10)),
            ((3, 3), (1, 1), (6, 18)),
            ((8, 20), (1, 1), (1, 1)),
        ):
            y = Layout((2, 3, *size))
            add("f32_pool2d", Pool2d(x=Layout((2, 3, 8, 20)), y=y, kind=kind, window=window, stride=stride))
    for name in ("f32_conv2d_direct", "f32_conv2d_direct_co"):
        weight = rng.standard_normal((5, 3, 3, 3)).astype(np.float32)
        for quant in (None, QUANT):
            y = Layout((1, 5, 6, 9), "uint8" if quant else "float32")
            x = Layout((1, 3, 6, 9), halo=(1, 1, 1, 1))
            op = Conv2d(
                x=x, y=y, weight=weight, padding=(1, 1, 1, 1), epilogue=(Step("relu6"),), y_quant=quant
            )
            values = poisoned(rng, *x.shape, share=0.01)
            if quant:  # a finite sum may round to another code
                values = np.where(np.isfinite(values), 0, values)
            cases.append(Case(kernels[name], op, [values]))
    return cases


@on_targets("x86-64-v3", "host", "rpi4")
def test_fp32_kernels(target: str) -> None:
    expect(_fp32(np.random.default_rng(1)), target)


@on_targets("x86-64-v3", "host", "rpi4")
def test_dense_kernels_with_fp32_inputs(target: str) -> None:
    board = available(target)
    cases = []
    for kernel in kernels_for(board, DENSE):
        rng = rng_of(kernel.name, "special")
        rows = getattr(kernel, "rows", 0) or 16
        kept = mask(rng, 48, 70, 1 if "sell" in kernel.name else rows, 1, 0.2)
        kept[:, ::9] = 0
        op = layer_for(rng, kernel, kept, batch=6, epilogue=(Step("leaky_relu", (0.3,)),))
        x = rng.standard_normal((6, 70)).astype(np.float32)
        x[np.arange(5), rng.integers(0, 70, 5)] = (NAN, -NAN, INF, -INF, INF)
        cases.append(Case(kernel, op, [x]))
    expect(cases, target)


def _int8_dense(target: Target) -> list[Case]:
    cases = []
    for which, kernel in enumerate(kernels_for(target, INT8)):
        rng = rng_of(kernel.name, "special")
        rows = kernel.rows if hasattr(kernel, "rows") else 0
        weight = int8_weight(rng, 48, 64, mask(rng, 48, 64, rows or 16, 4, 0.5))
        for fine in (1, 16) if kernel.name.startswith("qd8") else (1,):
            dynamic = kernel.name.startswith("qd8") and fine == 1
            steps = (Step("add", operand=Layout((6, 48))), Step("relu"))
            for quant in some((None, QUANT), target, which + fine):
                op = int8_layer(
                    rng,
                    weight,
                    dynamic=dynamic,
                    fine=fine,
                    batch=6,
                    epilogue=steps,
                    y_quant=quant,
                    bias=False,
                )
                x = rng.standard_normal((6, 64)).astype(np.float32)
                x[np.arange(5), rng.integers(0, 64, 5)] = (NAN, -NAN, INF, -INF, 3e38)
                x[4, 0] = -3e38  # a range of more than fp32 holds
                if op.x.dtype == "uint8":
                    x = rng.integers(0, 256, x.shape).astype(np.uint8)
                cases.append(Case(kernel, op, [x, poisoned(rng, 6, 48)]))
    return cases


@on_targets("x86-64-v3", "x86-64-v4", "rpi4", "rpi5")
def test_int8_dense_kernels(target: str) -> None:
    """A sample with infinity or not-a-number has no range: all of its outputs are not-a-number."""
    expect(_int8_dense(available(target)), target, tolerance=0)


@pytest.mark.parametrize(("kernel", "target"), CONV.items())
def test_int8_convolutions(kernel: str, target: str) -> None:
    """What a residual brings."""
    rng, board = rng_of(kernel), available(target)
    one: Kernel = all_kernels()[f"qs8_conv2d_{kernel}"]
    cases = []
    for quant in (None, QUANT):
        weight = rng.integers(-99, 100, (4, 8, 3, 3)).astype(np.int8)
        y = Layout((1, 4, 6, 18), "uint8" if quant else "float32", group=4 if quant else 1)
        op = Conv2d(
            x=Layout((1, 8, 6, 18), "uint8", (1, 1, 1, 1), 4, fill=7), y=y, weight=weight, padding=(1, 1, 1, 1),
            scale=(rng.random(4) * 1e-3).astype(np.float32), x_quant=Quant(0.01, 7), y_quant=quant,
            epilogue=(Step("add", operand=Layout((1, 4, 6, 18))), Step("relu")),
        )  # fmt: skip
        group = one.x_group(op, board)
        op = Conv2d(**{**vars(op), "x": Layout(op.x.shape, "uint8", (1, 1, 1, 1), group, fill=7)})
        x = rng.integers(0, 256, op.x.shape).astype(np.uint8)
        cases.append(Case(one, op, [x, poisoned(rng, 1, 4, 6, 18)]))
    expect(cases, target, tolerance=0)


@on_targets("x86-64-v3", "host", "rpi4")
def test_two_planes_of_codes(target: str) -> None:
    rng = np.random.default_rng(3)
    cases = []
    for group, channels in ((1, 8), (2, 2), (4, 4)):
        y = Layout((2, 2 * channels, 5, 19), "uint8", (1, 1, 1, 1), group, fill=117)
        op = QuantizeWide(x=Layout((2, channels, 5, 19)), y=y, y_quant=QUANT, fine=16)
        cases.append(Case(all_kernels()["quantize_wide"], op, [poisoned(rng, *op.x.shape)]))
    expect(cases, target)


def test_codes_of_not_a_number_are_0() -> None:
    """In numpy and in the simulation in PyTorch."""
    import edgecsi.models.compressed.ops as simulation

    for quant in (QUANT, Quant(1.0, 0), Quant(0.1, 255)):
        with np.errstate(all="ignore"):
            codes = quant.codes(SPECIAL)
        assert (codes[:2] == 0).all()
        assert codes[2:4].tolist() == [255, 0]
        torchs = simulation.quantize(torch.from_numpy(SPECIAL), quant.scale, quant.zero_point, quant.offset)
        assert (torchs.numpy() == codes).all()


def test_no_kernel_is_left_out() -> None:
    own = ("qd16_", "f16_")  # these have tests of their own
    asked = OTHERS | {k for k in all_kernels() if k.startswith(own)}
    asked |= {f"qs8_conv2d_{name}" for name in CONV}
    assert {k for k in all_kernels() if not k.startswith((*DENSE, *INT8))} == asked
