"""Int8 convolutions give exactly what the reference gives, on every instruction set; so does quantising."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecsi.kernels.conv.tile import bound
from edgecsi.kernels.variants import all_kernels, candidates
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Conv2d, Elementwise, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import Target, load
from edgecsi.tune.harness import Case, run_cases
from tests._every_case import in_turns
from tests.kernels.common import available, check, normal

KERNELS = [
    ("qs8_conv2d_vnni", "x86-64-v4"),
    ("qs8_conv2d_avx2", "x86-64-v3"),
    ("qs8_conv2d_maddubs", "x86-64-v3"),
    ("qs8_conv2d_sdot", "rpi5"),
    ("qs8_conv2d_neon", "rpi4"),
]
X_QUANT, Y_QUANT = Quant(0.02, 31), Quant(0.05, 77, 0.5)
LEAKY = Step("leaky_relu", (0.3,))

everywhere = pytest.mark.parametrize(("kernel", "target"), KERNELS)


def runs(kernel: str, target: str) -> Target:
    """The target, if this machine runs it; it must have the kernel's instruction."""
    board = available(target)
    assert all_kernels()[kernel].lacks(board) == ""
    return board


def convolution(
    rng: np.random.Generator,
    board: Target,
    kernel: str,
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    *,
    batch: int = 1,
    codes: bool = True,
    group: int | None = None,
    epilogue: tuple[Step, ...] = (LEAKY,),
    padding: tuple[int, int, int, int] | None = None,
    dilation: tuple[int, int] = (1, 1),
    border: bool = False,
    weights: Any = None,
    values: Any = None,
    scale: float = 2e-3,
    x_quant: Quant = X_QUANT,
    y_quant: Quant = Y_QUANT,
    fill: int | None = None,
    knobs: dict[str, int] | None = None,
    fine: int = 1,
) -> Case:
    """A case: weights `shape` [O, C, KH, KW] on an input of height and width `size`."""
    outs, channels, kh, kw = shape
    reach = dilation[0] * (kh - 1), dilation[1] * (kw - 1)
    pad = padding or (reach[0] // 2, reach[0] - reach[0] // 2, reach[1] // 2, reach[1] - reach[1] // 2)
    out = (batch, outs, size[0] + pad[0] + pad[1] - reach[0], size[1] + pad[2] + pad[3] - reach[1])
    planes = channels if fine == 1 else 2 * channels
    x = Layout((batch, planes, *size), "uint8", halo=pad, fill=x_quant.zero_point if fill is None else fill)
    bias = rng.integers(-3000, 3000, outs).astype(np.int32)
    if border:
        bias = np.broadcast_to(bias[:, None, None], (outs, *out[2:])).copy()
        inside = bias[:, 1:-1, 1:-1].copy()
        bias += rng.integers(-900, 900, bias.shape).astype(np.int32)
        bias[:, 1:-1, 1:-1] = inside
    op = Conv2d(
        x=x,
        y=Layout(out),
        weight=np.rint(np.clip(rng.normal(0, 45, shape), -127, 127)).astype(np.int8)
        if weights is None
        else weights,
        bias=bias,
        scale=(scale * rng.uniform(0.5, 1.5, outs)).astype(np.float32),
        x_quant=x_quant,
        padding=pad,
        dilation=dilation,
        epilogue=epilogue,
        fine=fine,
    )
    wanted = all_kernels()[kernel].x_group(op, board)
    y = Layout(out, "uint8", (1, 1, 2, 1), group or (wanted if outs > 2 else 2), fill=y_quant.zero_point)
    y = y if codes else Layout(out, halo=(0, 1, 1, 1))
    op = replace(op, x=replace(x, group=wanted), y=y, y_quant=y_quant if codes else None)
    first = (
        rng.integers(0, 256, x.shape).astype(np.uint8)
        if values is None
        else np.full(x.shape, values, np.uint8)
    )
    operands = [normal(rng, *lay.shape) for lay in op.inputs[1:]]
    return Case(all_kernels()[kernel], op, [first, *operands], knobs)


@everywhere
def test_the_layers_of_csi_networks(kernel: str, target: str) -> None:
    rng, board = np.random.default_rng(0), runs(kernel, target)
    skip = Step("add", operand=Layout((1, 2, 32, 32), halo=(1, 1, 1, 1)))
    layers: list[tuple[Any, dict[str, Any]]] = [
        ((8, 2, 3, 3), {}),
        ((16, 8, 3, 3), {}),
        ((2, 16, 3, 3), {"codes": False, "epilogue": (skip, LEAKY)}),
        ((2, 2, 3, 3), {"codes": False}),
        ((7, 7, 1, 9), {}),
        ((7, 7, 9, 1), {}),
        ((7, 2, 1, 5), {}),
        ((2, 2, 5, 5), {}),
        ((2, 14, 1, 1), {"epilogue": (skip, LEAKY)}),
    ]
    layers = in_turns(layers, [name for name, _ in KERNELS].index(kernel))
    # Without a function of libm in it, fp32 is as exact as the codes are.
    check(
        [convolution(rng, board, kernel, s, (32, 32), **more) for s, more in layers], target, tolerance=1e-30
    )


@everywhere
def test_two_planes_of_codes(kernel: str, target: str) -> None:
    """Those of the networks, saturating sums, maps of biases, several samples, and a loop over channel groups."""
    rng, board = np.random.default_rng(7), runs(kernel, target)
    skip = Step("add", operand=Layout((1, 2, 32, 32), halo=(1, 1, 1, 1)))
    extreme = np.full((4, 16, 3, 3), 127, np.int8)
    layers: list[tuple[Any, Any, int, dict[str, Any]]] = [
        ((16, 8, 3, 3), (32, 32), 64, {"x_quant": Quant(0.003, 100)}),
        ((2, 16, 3, 3), (32, 32), 64, {"codes": False, "epilogue": (skip, LEAKY)}),
        ((5, 4, 1, 5), (7, 13), 16, {"batch": 3}),
        ((6, 64, 3, 3), (5, 9), 16, {"codes": False}),
        ((4, 16, 3, 3), (6, 6), 64, {"weights": extreme, "values": 255, "codes": False}),
        ((4, 16, 3, 3), (6, 6), 64, {"weights": -extreme, "values": 0, "codes": False}),
    ]
    if kernel != "qs8_conv2d_maddubs":  # which reads four channels
        layers += [
            ((8, 2, 3, 3), (32, 32), 64, {}),
            ((2, 2, 3, 3), (32, 32), 64, {"codes": False, "border": True}),
            ((3, 2, 5, 5), (4, 9), 32, {"batch": 2}),
        ]
    cases = [convolution(rng, board, kernel, s, size, fine=fine, **more) for s, size, fine, more in layers]
    check(cases, target, tolerance=1e-30)


@everywhere
def test_planes_that_share_a_group_are_refused(kernel: str, target: str) -> None:
    board = runs(kernel, target)
    case = convolution(np.random.default_rng(8), board, kernel, (4, 3, 3, 3), (8, 8), fine=16)
    assert "planes" in all_kernels()[kernel].refuses(case.op, board)


@everywhere
def test_any_size_channels_and_kernel(kernel: str, target: str) -> None:
    rng, board = np.random.default_rng(1), runs(kernel, target)
    cases = []
    for _ in range(8):
        outs, channels = map(int, rng.integers(1, 14, 2))
        kh, kw = map(int, rng.integers(1, 6, 2))
        size = int(rng.integers(1, 9)), int(rng.integers(4, 41))
        cases.append(
            convolution(
                rng, board, kernel, (outs, channels, kh, kw), size,
                batch=int(rng.integers(1, 3)), codes=bool(rng.integers(2)), group=int(rng.choice([1, 2, 4])),
                border=bool(rng.integers(2)) and min(size) > 2,
                x_quant=Quant(0.01, int(rng.integers(0, 256))),
                y_quant=Quant(0.04, int(rng.integers(0, 256)), float(rng.choice([0, 0.5]))),
            )
        )  # fmt: skip
    cases += [
        convolution(rng, board, kernel, (5, 3, 3, 3), (9, 13), dilation=(2, 3)),
        convolution(rng, board, kernel, (3, 6, 3, 3), (6, 11), padding=(0, 2, 1, 0)),
        convolution(rng, board, kernel, (4, 2, 3, 3), (7, 19), border=True, fill=200),
        convolution(rng, board, kernel, (6, 40, 2, 2), (5, 9)),
    ]
    check(cases, target, tolerance=1e-30)


@everywhere
def test_values_that_saturate(kernel: str, target: str) -> None:
    rng, board = np.random.default_rng(2), runs(kernel, target)
    shape = 4, 8, 3, 3
    cases = []
    for weight in (-127, 127, np.resize([127, -127], shape)):
        for code, scale in ((0, 1e-4), (255, 1e-4), (255, 1e9)):
            weights = np.broadcast_to(np.int8(weight), shape)
            cases.append(
                convolution(rng, board, kernel, shape, (4, 8), weights=weights, values=code, scale=scale)
            )
    sparse = np.zeros(shape, np.int8)
    sparse[:, 3, 1, 2] = 99
    cases += [
        convolution(rng, board, kernel, shape, (4, 8), weights=w) for w in (sparse, np.zeros_like(sparse))
    ]
    check(cases, target)


def test_vnni_without_avx512(tmp_path: Path) -> None:
    laptop = tmp_path / "laptop.toml"
    laptop.write_text(
        'extends = "x86-64-v3"\nmcpu = "alderlake"\ndot = "avx_vnni"\n'
        f"features = {[*load('x86-64-v3').features, 'avx_vnni']}\n"
    )
    rng, board = np.random.default_rng(8), runs("qs8_conv2d_vnni", str(laptop))
    shapes = ((16, 8, 3, 3), (8, 9)), ((8, 2, 3, 3), (5, 32)), ((3, 7, 1, 5), (4, 6))
    check([convolution(rng, board, "qs8_conv2d_vnni", *shape) for shape in shapes], str(laptop))


@everywhere
def test_epilogues(kernel: str, target: str) -> None:
    rng, board = np.random.default_rng(3), runs(kernel, target)
    shape = 2, 3, 6, 18
    gates = [Layout((2, 3, 1, 1)), Layout((2, 1, 6, 18)), Layout(shape, halo=(2, 2, 2, 2))]
    factors = normal(rng, 3), normal(rng, 3)
    chains = [
        (Step("sigmoid"),),
        (
            Step("scale_channels", constants=factors[:1]),
            Step("shift_channels", constants=factors[1:]),
            Step("mul", operand=gates[0]),
            Step("relu"),
        ),
        (Step("mul", operand=gates[1]), Step("add", operand=gates[2]), Step("prelu", constants=factors[:1])),
        (Step("leaky_relu", (1.5,)), Step("affine", (0.7, 0.1)), Step("hard_sigmoid")),
    ]
    cases = [
        convolution(rng, board, kernel, (3, 5, 3, 3), (6, 18), batch=2, epilogue=chain, codes=codes)
        for chain in chains
        for codes in (False, True)
        if chain[0].op != "sigmoid" or not codes  # which is a polynomial, not the reference's exp
    ]
    check(cases, target)


@everywhere
def test_every_knob_gives_the_same(kernel: str, target: str) -> None:
    rng, board = np.random.default_rng(4), runs(kernel, target)
    case = convolution(rng, board, kernel, (6, 9, 2, 3), (6, 24))
    space = case.kernel.space(case.op, board)
    tried = [{"outs": o, "rows": r, "cols": c} for o in space["outs"] for r, c in ((1, 4), (4, 2))]
    check([replace(case, knobs=knobs) for knobs in tried], target)


@pytest.mark.parametrize("target", ["x86-64-v3", "host", "rpi4"])
def test_quantising_into_groups(target: str) -> None:
    rng, board = np.random.default_rng(5), available(target)
    kernel = all_kernels()["elementwise"]
    cases = []
    for shape in ((1, 2, 32, 32), (2, 6, 7, 13), (1, 5, 3, 5), (1, 4, 2, 90)):
        for group in (1, 2, 4):
            quant = Quant(0.03, int(rng.integers(0, 256)), 0.5)
            y = Layout(shape, "uint8", (1, 1, 1, 1), group, fill=quant.zero_point)
            x = Layout(shape, halo=(0, 0, 1, 1))
            values = normal(rng, *shape) * 3
            values.reshape(-1)[:4] = 1e30, -1e30, 0.515, 0.545  # far off, and half way between two codes
            op = Elementwise(x=x, y=y, y_quant=quant, epilogue=(Step("add", operand=x),))
            cases.append(Case(kernel, op, [values, normal(rng, *shape)]))
    check(cases, target)
    for case, (_, got, _) in zip(cases, run_cases(cases, board), strict=True):
        assert (got == case.op.reference(*case.inputs)).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stride": (2, 2)}, "strides"),
        ({"groups": 2}, "grouped"),
        ({"weight": np.full((4, 8, 99, 99), 127, np.int8)}, "32 bits"),
        ({"padding": (2, 2, 1, 1)}, "halo"),
        ({"x": Layout((1, 8, 8, 8), "uint8", (1, 1, 1, 1))}, "groups of 1"),
        ({"x_quant": None}, "uint8 input"),
        ({"y": Layout((1, 4, 8, 3), "uint8", group=4)}, "fewer than 4"),
        ({"y": Layout((1, 4, 8, 8), "uint8", group=8)}, "groups of 8"),
        ({"y_quant": None}, "neither"),
    ],
)
def test_what_is_refused_says_why(change: dict[str, Any], reason: str) -> None:
    board = load("rpi5")
    case = convolution(np.random.default_rng(6), board, "qs8_conv2d_sdot", (4, 8, 3, 3), (8, 8))
    assert case.kernel.refuses(case.op, board) == ""
    assert reason in case.kernel.refuses(replace(case.op, **change), board)


def test_each_cpu_prefers_its_best_instruction() -> None:
    rng = np.random.default_rng(7)
    for target, kernel in (("x86-64-v4", "vnni"), ("x86-64-v3", "avx2"), ("rpi5", "sdot"), ("rpi4", "neon")):
        board = load(target)
        case = convolution(rng, board, f"qs8_conv2d_{kernel}", (16, 8, 3, 3), (32, 32))
        found, _ = candidates(case.op, board)
        assert found[0][0].name == f"qs8_conv2d_{kernel}"


def test_a_steep_slope_of_either_sign_has_no_known_bound() -> None:
    rng, board = np.random.default_rng(9), load("x86-64-v3")
    known = {}
    for slope in (0.3, 1.5, -5.0):
        steps = (Step("leaky_relu", (slope,)),)
        op = convolution(rng, board, "qs8_conv2d_avx2", (4, 8, 3, 3), (8, 8), epilogue=steps, codes=True).op
        known[slope] = np.isfinite(bound(op, np.zeros(4, np.int32)))
    assert known == {0.3: True, 1.5: False, -5.0: False}
