"""Dense kernels with fp32 activations and sparse, int8 or clustered weights."""

from __future__ import annotations

import numpy as np

from edgecsi.kernels.base import Kernel
from edgecsi.kernels.dense.blocks import BlockDense
from edgecsi.kernels.dense.f32_dense import F32Dense
from edgecsi.kernels.dense.slices import SliceDense
from edgecsi.kernels.variants import all_kernels, candidates
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense, Quant
from edgecsi.ops.steps import Step
from edgecsi.target import Target
from edgecsi.tune.harness import Case
from tests.kernels.common import check, on_targets
from tests.kernels.dense_cases import (
    DENSITIES,
    SHAPES,
    TARGETS,
    Array,
    case,
    int8_weight,
    kernels_for,
    mask,
    rng_of,
    taken,
)

FLOAT = ("f32_bsr", "f32_qs8w", "f32_sell", "f32_lut", "f32_compact")


def layer_for(
    rng: np.random.Generator,
    kernel: Kernel,
    kept: Array,
    *,
    batch: int = 1,
    x: Layout | None = None,
    y: Layout | None = None,
    epilogue: tuple[Step, ...] = (),
    y_quant: Quant | None = None,
) -> Dense:
    """A layer with weights of the kernel's kind."""
    assert isinstance(kernel, BlockDense | SliceDense | F32Dense)
    outputs, inputs = kept.shape
    scale = table = None
    if kernel.weights == "qs8w":
        weight = int8_weight(rng, outputs, inputs, kept)
        scale = (rng.random(outputs) * 1e-3 + 1e-4).astype(np.float32)
    elif kernel.weights.startswith("lut"):
        entries = int(kernel.weights[3:])
        table = rng.standard_normal(int(rng.integers(max(2, entries // 2 + 1), entries + 1))).astype(
            np.float32
        )
        table[1] = 0
        weight = np.where(kept != 0, rng.integers(0, table.size, kept.shape), 1).astype(np.uint8)
    else:
        half = np.float16 if kernel.weights == "f16w" else np.float32
        weight = (rng.standard_normal(kept.shape) * kept).astype(half).astype(np.float32)
    return Dense(
        x=x or Layout((batch, inputs)),
        y=y or Layout((batch, outputs)),
        weight=weight,
        scale=scale,
        table=table,
        bias=rng.standard_normal(outputs).astype(np.float32) if rng.random() < 0.7 else None,
        epilogue=epilogue,
        y_quant=y_quant,
    )


def _rows(kernel: Kernel) -> int:
    return 1 if isinstance(kernel, SliceDense) else getattr(kernel, "rows", 0) or 16


def _shapes(target: Target) -> list[Case]:
    cases = []
    for which, kernel in enumerate(kernels_for(target, FLOAT)):
        rng = rng_of(target.id, kernel.name)
        for number in range(which, which + len(SHAPES)):
            outputs, inputs = SHAPES[number % len(SHAPES)]
            kept = mask(rng, outputs, inputs, _rows(kernel), 1, DENSITIES[number % len(DENSITIES)])
            steps = (Step("leaky_relu", (0.3,)),) if rng.random() < 0.5 else ()
            op = layer_for(rng, kernel, kept, batch=int(rng.choice([1, 1, 2, 5, 8])), epilogue=steps)
            cases.append(case(rng, kernel, op))
    return taken(cases, target, kernels_for(target, FLOAT), most=2)


@on_targets(*TARGETS)
def test_shapes_and_densities(target: str) -> None:
    check(_shapes, target)


def _few_inputs(target: Target) -> list[Case]:
    """Fewer than a window holds, and just as many: no sample of a batch may be read beyond its end."""
    cases = []
    for which, kernel in enumerate(kernels_for(target, FLOAT)):
        rng = rng_of(target.id, kernel.name, "few")
        for inputs in np.roll((1, 33, 9, 100, 16, 30), which):
            kept = mask(rng, 40, int(inputs), _rows(kernel), 1, 0.3)
            cases.append(case(rng, kernel, layer_for(rng, kernel, kept, batch=2)))
    return taken(cases, target, kernels_for(target, FLOAT), most=3)


@on_targets("x86-64-v3", "x86-64-v4", "rpi4")
def test_few_inputs(target: str) -> None:
    check(_few_inputs, target)


def _layouts(target: Target) -> list[Case]:
    cases = []
    for which, kernel in enumerate(kernels_for(target, FLOAT)):
        rng = rng_of(target.id, kernel.name, "layouts")
        images = [
            (Layout((1, 2, 6, 8), halo=(1, 1, 1, 1)), Layout((1, 2, 4, 8), halo=(1, 1, 1, 1))),
            (Layout((2, 3, 5, 7)), Layout((2, 3, 5, 7), halo=(2, 0, 1, 2))),
            (Layout((1, 6, 4, 4), halo=(1, 1, 1, 1), group=4), Layout((1, 5, 3, 7), group=4)),
            (Layout((3, 40), batch_stride=100), Layout((3, 24), batch_stride=31)),
        ]
        for x, y in images[which % 2 :: 2]:
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
            kept = mask(rng, outputs, inputs, _rows(kernel), 1, 0.3)
            kept[:, ::3] = 0
            op = layer_for(rng, kernel, kept, x=x, y=y, epilogue=steps)
            cases.append(case(rng, kernel, op))
    return taken(cases, target, kernels_for(target, FLOAT))


@on_targets(*TARGETS)
def test_layouts_and_epilogues(target: str) -> None:
    check(_layouts, target)


def _grouped(target: Target) -> list[Case]:
    """Codes out, four channels side by side; whole numbers, so that sums are exact in any order."""
    cases = []
    for kernel in kernels_for(target, ("f32_bsr", "f32_compact")):
        rng = rng_of(target.id, kernel.name, "grouped")
        y = Layout((2, 6, 3, 8), "uint8", (1, 1, 1, 1), 4, fill=100)
        kept = mask(rng, 144, 64, _rows(kernel), 1, 0.3)
        kept[::5] = 0
        op = Dense(
            x=Layout((2, 64)), y=y, weight=(rng.integers(-9, 10, (144, 64)) * kept).astype(np.float32),
            bias=rng.integers(-9, 10, 144).astype(np.float32), y_quant=Quant(2.0, 100),
        )  # fmt: skip
        cases.append(Case(kernel, op, [rng.integers(-9, 10, (2, 64)).astype(np.float32)]))
    return cases


@on_targets("x86-64-v3", "host", "rpi4")
def test_grouped_codes_out(target: str) -> None:
    check(_grouped, target)


def _compacted(target: Target) -> list[Case]:
    cases = []
    names = ("f32_qs8w_dense", "f32_compact_dense", "f32_lut16_dense")
    for kernel in (all_kernels()[name] for name in names):
        rng = rng_of(target.id, kernel.name, "compacted")
        for rows_left, columns_left in ((1.0, 0.3), (0.4, 1.0), (0.5, 0.5), (0.0, 0.0)):
            kept = np.outer(rng.random(50) < rows_left, rng.random(75) < columns_left)
            cases.append(case(rng, kernel, layer_for(rng, kernel, kept, batch=3)))
    return cases


@on_targets(*TARGETS)
def test_rows_and_columns_of_zeros(target: str) -> None:
    check(_compacted, target)


@on_targets("host", "rpi4")
def test_every_knob_gives_the_same(target: str) -> None:
    def cases(board: Target) -> list[Case]:
        found = []
        for kernel in kernels_for(board, ("f32_qs8w_bsr16x1", "f32_sell", "f32_lut16_dense")):
            rng = rng_of(kernel.name)
            op = layer_for(rng, kernel, mask(rng, 70, 52, _rows(kernel), 1, 0.3), batch=5)
            one = case(rng, kernel, op)
            base = dict(kernel.knobs(op, board))
            for name, values in kernel.space(op, board).items():
                found += [Case(kernel, op, one.inputs, base | {name: v}) for v in {values[0], values[-1]}]
        return found

    check(cases, target)


@on_targets("x86-64-v3", "host", "rpi4")
def test_large_tables_are_looked_up_when_that_is_faster(target: str) -> None:
    """Kernels with fp32 weights take clustered ones too; all give the same."""

    def cases(board: Target) -> list[Case]:
        found = []
        for entries in (17, 64, 200):
            rng = rng_of("tables", entries)
            table = rng.standard_normal(entries).astype(np.float32)
            table[5] = 0
            weight = np.where(rng.random((50, 70)) < 0.3, rng.integers(0, entries, (50, 70)), 5)
            op = Dense(x=Layout((1, 70)), y=Layout((1, 50)), weight=weight.astype(np.uint8), table=table)
            chosen = [k for k, _, _ in candidates(op, board)[0]]
            assert {"f32_lut256_dense", "f32_compact_dense", "f32_bsr16x1_dense"} <= {k.name for k in chosen}
            found += [case(rng, kernel, op) for kernel in chosen]
        return found

    check(cases, target)
