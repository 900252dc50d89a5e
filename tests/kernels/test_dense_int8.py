"""Int8 dense kernels: equal to the reference bit for bit, on every target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgecsi.kernels.base import constant_bytes
from edgecsi.kernels.variants import all_kernels
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Quant
from edgecsi.ops.steps import Step
from edgecsi.target import Target, load
from edgecsi.tune.harness import Case, run_cases
from tests._cpu import skip_without
from tests.kernels.common import available, check, on_targets
from tests.kernels.dense_cases import (
    DENSITIES,
    SHAPES,
    TARGETS,
    activations,
    case,
    int8_layer,
    int8_weight,
    kernels_for,
    mask,
    rng_of,
    some,
    some_shapes,
)

INT8 = ("qd8_", "qs8_qs8w")
CODES = Quant(0.031, 117, 0.1)


def _shapes(target: Target) -> list[Case]:
    cases = []
    for which, kernel in enumerate(kernels_for(target, INT8)):
        rng = rng_of(target.id, kernel.name)
        rows = getattr(kernel, "rows", 0) or 16
        for number in some_shapes(target, which):
            outputs, inputs = SHAPES[number % len(SHAPES)]
            density = DENSITIES[number % len(DENSITIES)]
            kept = mask(rng, outputs, inputs, rows, 4, density)
            weight = int8_weight(rng, outputs, inputs, kept)
            batch = int(rng.choice([1, 1, 2, 5, 8]))
            quant = CODES if rng.random() < 0.5 else None
            steps = (Step("leaky_relu", (0.3,)),) if rng.random() < 0.5 else ()
            op = int8_layer(
                rng, weight, dynamic=kernel.name.startswith("qd8"), batch=batch, epilogue=steps,
                y_quant=quant, bias=bool(rng.random() < 0.7),
            )  # fmt: skip
            cases.append(case(rng, kernel, op))
    return cases


@on_targets(*TARGETS)
def test_shapes_densities_and_extreme_codes(target: str) -> None:
    check(_shapes, target, tolerance=0)


def _layouts(target: Target) -> list[Case]:
    """Images in and out, with halos, grouped channels, residuals, gates and constants per channel."""
    cases = []
    for which, kernel in enumerate(kernels_for(target, INT8)):
        rng = rng_of(target.id, kernel.name, "layouts")
        dynamic = kernel.name.startswith("qd8")
        dtype = "float32" if dynamic else "uint8"
        rows = getattr(kernel, "rows", 0) or 16
        images = [
            (
                Layout((1, 2, 6, 8), dtype, (1, 1, 1, 1)),
                Layout((1, 2, 4, 8), "uint8", (1, 1, 1, 1), fill=117),
            ),
            (Layout((2, 3, 5, 7), dtype), Layout((2, 3, 5, 7), "float32", (2, 0, 1, 2))),
            (Layout((1, 64), dtype), Layout((1, 2, 4, 8), "uint8", (1, 1, 1, 1), 4, fill=117)),
            (
                Layout((1, 6, 4, 4), dtype, (1, 1, 1, 1), 4),
                Layout((1, 5, 3, 7), "uint8", (0, 1, 0, 1), 4, fill=117),
            ),
            (Layout((3, 40), dtype, batch_stride=100), Layout((3, 24), "float32", batch_stride=31)),
        ]
        for x, y in some(images, target, which):
            outputs, inputs = int(np.prod(y.shape[1:])), int(np.prod(x.shape[1:]))
            steps: tuple[Step, ...] = (Step("add", operand=Layout(y.shape)), Step("relu"))
            if len(y.shape) == 4:
                channels = [rng.standard_normal(y.shape[1]).astype(np.float32) for _ in range(2)]
                steps = (
                    Step("add", operand=Layout(y.shape, halo=(1, 1, 1, 1))),
                    Step("scale_channels", constants=tuple(channels[:1])),
                    Step("shift_channels", constants=tuple(channels[1:])),
                    Step("mul", operand=Layout((*y.shape[:2], 1, 1))),
                )
            weight = int8_weight(rng, outputs, inputs, mask(rng, outputs, inputs, rows, 4, 0.4))
            quant = CODES if y.dtype == "uint8" else None
            op = int8_layer(rng, weight, dynamic=dynamic, x=x, y=y, epilogue=steps, y_quant=quant)
            cases.append(case(rng, kernel, op))
    return cases


@on_targets(*TARGETS)
def test_layouts_and_epilogues(target: str) -> None:
    check(_layouts, target, tolerance=0)


def _compacted(target: Target) -> list[Case]:
    """Whole inputs and outputs without weights, in layers stored in full."""
    cases = []
    layouts = Layout((2, 50)), Layout((2, 2, 5, 5), "uint8", (1, 1, 1, 1), 4, fill=117)
    for which, kernel in enumerate(kernels_for(target, ("qd8_qs8w_dense", "qs8_qs8w_dense"))):
        rng = rng_of(target.id, kernel.name, "compacted")
        for number, (rows_left, columns_left) in enumerate(((1.0, 0.3), (0.4, 1.0), (0.5, 0.5), (0.0, 0.0))):
            kept = np.outer(rng.random(50) < rows_left, rng.random(75) < columns_left)
            for y in some(layouts, target, which + number):
                quant = CODES if y.dtype == "uint8" else None
                weight = int8_weight(rng, 50, 75, kept)
                op = int8_layer(
                    rng, weight, dynamic=kernel.name.startswith("qd8"), batch=2, y=y, y_quant=quant
                )
                cases.append(case(rng, kernel, op))
    return cases


def _two_planes(target: Target) -> list[Case]:
    """Static ranges in two planes of codes: sparse, compacted, batches of every remainder, images, clipped inputs."""
    cases = []
    for which, kernel in enumerate(kernels_for(target, ("qd8_",))):
        rng = rng_of(target.id, kernel.name, "planes")
        rows = getattr(kernel, "rows", 0) or 16
        outputs, inputs = SHAPES[which % len(SHAPES)]
        image = Layout((1, 2, 6, 8), "float32", (1, 1, 1, 1))
        for number, (x, fine) in enumerate((
            (Layout((1, inputs)), 64), (Layout((5, inputs)), 32), (Layout((6, 40)), 8), (image, 16),
        )):  # fmt: skip
            columns = int(np.prod(x.shape[1:]))
            kept = mask(rng, outputs, columns, rows, 4, 0.5)
            if number == 1:
                kept[:, rng.random(columns) < 0.4] = 0
            quant = CODES if number % 2 else None
            y = Layout((x.shape[0], outputs), "uint8" if quant else "float32")
            op = int8_layer(
                rng, int8_weight(rng, outputs, columns, kept), dynamic=False, fine=fine, x=x, y=y, y_quant=quant,
                batch=x.shape[0], bias=number != 2,
            )  # fmt: skip
            values = activations(rng, x) * np.float32(1.5)
            values.flat[:2] = (1e30, -1e30)
            cases.append(Case(kernel, op, [values]))
    return cases


@on_targets(*TARGETS)
def test_two_planes_of_codes(target: str) -> None:
    check(_two_planes, target, tolerance=0)


@on_targets(*TARGETS)
def test_rows_and_columns_of_zeros(target: str) -> None:
    check(_compacted, target, tolerance=0)


def _few_bits(target: Target) -> list[Case]:
    """Inputs whose weights fit in four to seven bits among others, all of them, with zeros, and several samples."""
    cases = []
    for kernel in kernels_for(target, ("qd8_qs8w_dense", "qs8_qs8w_dense")):
        rng = rng_of(target.id, kernel.name, "bits")
        for bits, batch, left in ((range(3, 9), 1, 1.0), (range(4, 8), 3, 1.0), ((5, 6, 8), 1, 0.7)):
            groups = 160
            widest = np.array([b for b in bits for _ in range(groups // len(bits))])
            widest = rng.permutation(np.resize(widest, groups))
            limit = np.repeat(1 << (widest - 1), 4)
            weight = rng.integers(-limit, limit, (70, 4 * groups))
            weight = np.where(
                rng.random(weight.shape) < 0.3, rng.choice([-1, 0], weight.shape) * limit, weight
            )
            weight[:, rng.permutation(4 * groups)[: round((1 - left) * 4 * groups)]] = 0
            dynamic = kernel.name.startswith("qd8")
            op = int8_layer(rng, weight.astype(np.int8), dynamic=dynamic, batch=batch)
            for narrow in kernel.space(op, target)["narrow"]:
                knobs = dict(kernel.knobs(op, target)) | {"narrow": narrow}
                cases.append(Case(kernel, op, [activations(rng, op.x)], knobs))
    return cases


@on_targets("x86-64-v4", "host")
def test_weights_of_few_bits(target: str) -> None:
    check(_few_bits, target, tolerance=0)
    board = available(target)
    stored = {
        narrow: sum(
            constant_bytes(c.kernel.constants(c.op, board, c.knobs))
            for c in _few_bits(board)
            if c.knobs and c.knobs["narrow"] == narrow
        )
        for narrow in (0, 1)
    }
    if board.dot == "avx512_vnni":
        assert stored[1] < 0.85 * stored[0]


def test_many_weights_of_few_bits_are_stored_in_these() -> None:
    target = load("x86-64-v4")
    kernel = all_kernels()["qs8_qs8w_dense_vnni"]
    rng = rng_of("default")
    limit = np.repeat([4, 127], 512)
    large, small = (
        int8_layer(rng, rng.integers(-limit, limit, (outputs, 1024)).astype(np.int8), dynamic=False)
        for outputs in (600, 100)
    )
    assert kernel.knobs(large, target)["narrow"] == 1
    assert kernel.knobs(small, target)["narrow"] == 0  # the cache delivers those fast enough
    stored = constant_bytes(kernel.constants(large, target, kernel.knobs(large, target)))
    assert stored == pytest.approx(0.75 * large.weight.nbytes, rel=0.05)
    assert kernel.cost(large, target, kernel.knobs(large, target)).bytes == pytest.approx(stored, rel=0.05)


def _saturating(target: Target) -> list[Case]:
    """Sums of the largest products, and weights of -128, which have no positive counterpart."""
    cases = []
    for kernel in kernels_for(target, INT8):
        rng = rng_of(target.id, kernel.name, "saturating")
        dynamic = kernel.name.startswith("qd8")
        for code in (-128, -127, 127):
            weight = np.full((32, 64), code, np.int8)
            op = int8_layer(rng, weight, dynamic=dynamic)
            values = (-3.5, 3.5, 0.0) if dynamic else (0, 255, 128)
            cases += [Case(kernel, op, [np.full((1, 64), v, op.x.dtype)]) for v in {values[0], values[-1]}]
    return cases


@on_targets(*TARGETS)
def test_saturating_sums(target: str) -> None:
    check(_saturating, target, tolerance=0)


MOST = 2**31 // (255 * 127) // 8 * 8
"""Inputs whose products with weights of 127 fit int32 together."""


@on_targets("x86-64-v3", "x86-64-v4", "rpi4", "rpi5")
def test_sums_fill_32_bits(target: str) -> None:
    """The largest sums of either sign, for a range that is fixed, that is found, and that has a second plane."""
    board = available(target)
    cases, refused = [], []
    for kernel in kernels_for(board, ("qd8_qs8w_dense", "qs8_qs8w_dense")):
        dynamic = kernel.name.startswith("qd8")
        for fine in (1, 16) if dynamic else (1,):
            inputs = MOST // (fine + 1 if fine > 1 else 1) // 4 * 4
            for size, found in ((inputs, cases), (2 * inputs, refused)):
                weight = np.repeat(np.array([[127], [-127]], np.int8), size, axis=1)
                op = int8_layer(rng_of(size), weight, dynamic=dynamic and fine == 1, fine=fine, bias=False)
                if op.x_quant is not None:
                    op = replace(op, x_quant=Quant(0.0173, 0, 0.0))
                x = np.full(op.x.shape, 255 if op.x.dtype == "uint8" else 255 * 0.0173, op.x.dtype)
                found.append(Case(kernel, op, [x]))
    check(cases, target, tolerance=0)
    for one in refused:
        assert "32 bits" in one.kernel.refuses(one.op, board), one.kernel.name


def test_avx_vnni() -> None:
    """256-bit VNNI, for CPUs without AVX-512."""
    base = load("x86-64-v3")
    target = replace(
        base, id="avx-vnni", dot="avx_vnni", mattr=("+avxvnni",), features=(*base.features, "avx_vnni")
    )
    skip_without(target)
    cases = [*_shapes(target), *_saturating(target)]
    for one, (_, got, _) in zip(cases, run_cases(cases, target), strict=True):
        assert (got == one.op.reference(*one.inputs)).all(), one.kernel.name


def test_dynamic_codes_of_awkward_inputs() -> None:
    """Ties, the largest magnitude at either end, zeros, tiny and huge values."""
    target = load("x86-64-v3")
    rng = rng_of("awkward")
    weight = int8_weight(rng, 16, 128, np.ones((16, 128)))
    ties = (np.arange(128, dtype=np.float32) - 64) / 2
    ties[0] = 127
    rows = np.stack([ties, np.zeros(128), ties * 1e-38, ties * 1e-30, ties * 1e36, -ties]).astype(np.float32)
    kernel = all_kernels()["qd8_qs8w_dense_avx2"]
    one, six = (int8_layer(rng, weight, dynamic=True, batch=batch) for batch in (1, 6))
    # four rows find their ranges together, and two more each its own
    cases = [Case(kernel, six, [rows]), *(Case(kernel, one, [row[None]]) for row in rows)]
    check(cases, target.id, tolerance=0)


@on_targets("x86-64-v3", "rpi4")
def test_every_knob_gives_the_same(target: str) -> None:
    def cases(board: Target) -> list[Case]:
        found = []
        for kernel in kernels_for(board, ("qs8_qs8w_bsr16x4", "qs8_qs8w_dense")):
            rng = rng_of(kernel.name)
            weight = int8_weight(rng, 70, 52, mask(rng, 70, 52, 16, 4, 0.5))
            op = int8_layer(rng, weight, dynamic=False, batch=5)
            space = kernel.space(op, board)
            x = activations(rng, op.x)
            base = dict(kernel.knobs(op, board))
            for name, values in space.items():
                found += [Case(kernel, op, [x], base | {name: v}) for v in {values[0], values[-1]}]
        return found

    check(cases, target, tolerance=0)
