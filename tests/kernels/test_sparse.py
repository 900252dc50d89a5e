"""Sparse formats hold the matrix they were packed from, and the fastest predicted kernel fits the zeros."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecsi.kernels.dense.sparse import compact, pack_all, pack_blocks, pack_slices, sections
from edgecsi.kernels.variants import candidates
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense
from edgecsi.target import load
from tests.kernels.dense_cases import Array, mask, rng_of

sizes = st.integers(1, 70)
densities = st.sampled_from((0.0, 0.02, 0.2, 0.7, 1.0))


def _matrix(outputs: int, inputs: int, density: float) -> Array:
    rng = rng_of(outputs, inputs, density)
    return (rng.integers(1, 100, (outputs, inputs)) * (rng.random((outputs, inputs)) < density)).astype(
        np.int8
    )


@settings(max_examples=60, deadline=None)
@given(
    sizes, sizes, densities, st.sampled_from((4, 8, 16)), st.sampled_from((1, 4)), st.sampled_from((1, 2, 8))
)
def test_blocks_rebuild_the_matrix(
    o: int, i: int, density: float, rows: int, columns: int, unroll: int
) -> None:
    weight = _matrix(o, i, density)
    parts = sections(o, rows, rows)
    position = np.arange(-(-i // columns)) * columns
    blocks = pack_blocks(weight, parts, columns, unroll, position)
    assert blocks.index is not None
    assert blocks.start is not None
    assert blocks.index.dtype == np.uint16
    rebuilt = np.zeros((o + rows, i + columns), np.int64)
    values = np.concatenate([v.reshape(-1, rows, columns) for v in blocks.values])
    for panel in range(blocks.start.size - 1):
        for block in range(blocks.start[panel] * unroll, blocks.start[panel + 1] * unroll):
            at = int(blocks.index[block])
            rebuilt[panel * rows : (panel + 1) * rows, at : at + columns] += values[block]
    assert (rebuilt[:o, :i] == weight).all()
    assert not rebuilt[o:].any()


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.sampled_from((4, 12, 16)), st.sampled_from((1, 4)))
def test_all_blocks_are_in_order(o: int, i: int, rows: int, columns: int) -> None:
    weight = _matrix(o, i, 1.0)
    parts = sections(o, rows, 4)
    assert sum(part.valid for part in parts) == o
    packed = pack_all(weight, parts, columns, 2)
    for part, values in zip(parts, packed.values, strict=True):
        panels = values.reshape(part.panels, -1, part.rows, columns).transpose(0, 2, 1, 3)
        whole = panels.reshape(part.panels * part.rows, -1)
        assert (whole[: part.valid, :i] == weight[part.first : part.first + part.valid]).all()


@settings(max_examples=60, deadline=None)
@given(
    sizes,
    sizes,
    densities,
    st.sampled_from(((4, 1 << 20, 1), (8, 16, 4), (16, 32, 16))),
    st.sampled_from(((4, 1), (1, 4), (2, 3))),
)
def test_slices_rebuild_the_matrix(
    o: int, i: int, density: float, form: tuple[int, int, int], groups: tuple[int, int]
) -> None:
    (rows, width, align), (multiple, shared) = form, groups
    weight = _matrix(o, i, density)
    width = min(width, i)
    slices = pack_slices(weight, rows, width, align, multiple, shared)
    assert slices.window.size == slices.start[-1] * multiple
    step = multiple * shared
    rebuilt = np.zeros((o + rows, i), np.int64)
    assert (slices.lane >= 0).all()
    assert (slices.lane < width).all()
    assert (slices.window <= i - width).all()
    for panel in range(slices.start.size - 1):
        for at in range(slices.start[panel] * step, slices.start[panel + 1] * step):
            inputs = slices.window[at // shared] + slices.lane[at]
            rebuilt[panel * rows + np.arange(rows), inputs] += slices.values[at]
    assert (rebuilt[:o] == weight).all()
    assert slices.values.shape[0] == slices.start[-1] * step


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, densities)
def test_compact_leaves_out_zeros_only(o: int, i: int, density: float) -> None:
    weight = _matrix(o, i, density) * np.outer(np.arange(o) % 3 > 0, np.arange(i) % 2 > 0)
    small = compact(weight, weight != 0)
    rows = small.outputs if small.outputs is not None else np.arange(o)
    columns = small.inputs if small.inputs is not None else np.arange(i)
    rebuilt = np.zeros_like(weight)
    rebuilt[np.ix_(rows, columns)] = small.weight
    assert (rebuilt == weight).all()


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, densities)
def test_fillers_read_what_their_panel_reads(o: int, i: int, density: float) -> None:
    """So an infinite input reaches only the outputs that have a panel with it."""
    weight = _matrix(o, i, density)
    slices = pack_slices(weight, 16, min(32, i), 16, 1, 4)
    for panel in range(slices.start.size - 1):
        used = np.flatnonzero(weight[panel * 16 : (panel + 1) * 16].any(axis=0))
        windows = slice(slices.start[panel], slices.start[panel + 1])
        lanes = slices.lane[windows.start * 4 : windows.stop * 4]
        assert np.isin(np.repeat(slices.window[windows], 4)[:, None] + lanes, used).all()


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "rpi4", "rpi5"])
@pytest.mark.parametrize(
    ("rows", "columns", "density", "kind", "fits"),
    [
        (16, 4, 0.1, "dynamic", "bsr16x4"),
        (4, 4, 0.05, "dynamic", "bsr"),
        (1, 1, 0.9, "dynamic", "qd8_qs8w_dense"),
        (16, 1, 0.1, "f32", "f32_bsr16x1"),
        (1, 1, 0.1, "f32", "f32_sell"),
        (1, 1, 1.0, "f32", "f32_dense"),
        (16, 1, 0.1, "int8", "f32_qs8w_bsr16x1"),
        (1, 1, 1.0, "int8", "f32_qs8w_dense"),
    ],
)
def test_the_zeros_choose_the_kernel(
    target: str, rows: int, columns: int, density: float, kind: str, fits: str
) -> None:
    rng = rng_of(rows, columns, density)
    weight = rng.integers(-127, 128, (512, 1024)) * mask(rng, 512, 1024, rows, columns, density)
    quantised = kind != "f32"
    op = Dense(
        x=Layout((1, 1024)),
        y=Layout((1, 512)),
        # A third of a whole number is no half-precision number, which would have kernels of its own.
        weight=weight.astype(np.int8) if quantised else (weight / 3).astype(np.float32),
        scale=np.ones(512, np.float32) if quantised else None,
        dynamic=kind == "dynamic",
    )
    found, _ = candidates(op, load(target))
    assert fits in found[0][0].name, [(k.name, cost.seconds) for k, _, cost in found]


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "rpi4", "rpi5"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("kind", ["f32", "int8", "dynamic"])
def test_few_zeros_are_not_worth_an_index(target: str, batch: int, kind: str) -> None:
    rng = rng_of(batch, kind)
    kept = mask(rng, 512, 1024, 16, 1 if kind == "f32" else 4, 0.97)
    weight = rng.choice([-3, 5], (512, 1024)) * kept
    op = Dense(
        x=Layout((batch, 1024)),
        y=Layout((batch, 512)),
        weight=weight.astype(np.float32 if kind == "f32" else np.int8),
        scale=None if kind == "f32" else np.ones(512, np.float32),
        dynamic=kind == "dynamic",
    )
    found, _ = candidates(op, load(target))
    assert "bsr" not in found[0][0].name, [(k.name, cost.seconds) for k, _, cost in found]
