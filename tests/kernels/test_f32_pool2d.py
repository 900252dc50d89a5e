"""Pooling against the reference: windows across the border, strides, whole rows, halos."""

from __future__ import annotations

import numpy as np

from edgecsi.kernels.variants import all_kernels
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Pool2d
from edgecsi.ops.steps import Step
from edgecsi.target import load
from edgecsi.tune.harness import Case
from tests.kernels.common import check, normal, on_targets


def pool(
    shape: tuple[int, int, int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    kind: str,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    *,
    include: bool = True,
    halo: int = 0,
    steps: tuple[Step, ...] = (),
) -> Pool2d:
    n, c, height, width = shape
    rows = (height + padding[0] + padding[1] - window[0]) // stride[0] + 1
    columns = (width + padding[2] + padding[3] - window[1]) // stride[1] + 1
    return Pool2d(
        x=Layout(shape, halo=(halo,) * 4),
        y=Layout((n, c, rows, columns), halo=(halo,) * 4),
        kind=kind,
        window=window,
        stride=stride,
        padding=padding,
        count_include_pad=include,
        epilogue=steps,
    )


def operators() -> list[Pool2d]:
    around = (1, 1, 1, 1)
    return [
        pool((1, 4, 16, 16), (2, 2), (2, 2), "max"),
        pool((1, 4, 16, 34), (2, 2), (2, 2), "avg", halo=1),
        pool((1, 3, 17, 19), (3, 3), (2, 2), "max", around),
        pool((1, 3, 17, 19), (3, 3), (1, 1), "avg", around),
        pool((2, 3, 17, 19), (3, 3), (1, 1), "avg", around, include=False, halo=1),
        pool((2, 5, 32, 32), (32, 32), (32, 32), "avg"),
        pool((1, 6, 5, 7), (5, 7), (5, 7), "max"),
        pool((1, 2, 5, 5), (3, 4), (3, 3), "avg", (1, 1, 2, 2), include=False),
        pool((1, 2, 9, 9), (1, 3), (1, 3), "avg", (0, 0, 1, 1)),
        pool((1, 2, 8, 24), (2, 3), (2, 3), "max", steps=(Step("relu"),)),
        pool((1, 2, 1, 1), (1, 1), (1, 1), "max"),
    ]


@on_targets()
def test_every_window_matches_the_reference(target: str) -> None:
    rng = np.random.default_rng(2)
    kernel = all_kernels()["f32_pool2d"]
    check(
        [Case(kernel, op, [normal(rng, *lay.shape) for lay in op.inputs]) for op in operators()],
        target,
        in_pairs=True,
    )


def test_a_window_outside_the_image_is_refused() -> None:
    op = pool((1, 1, 4, 4), (2, 2), (1, 1), "max", (2, 0, 0, 0))
    assert "outside" in all_kernels()["f32_pool2d"].refuses(op, load("rpi4"))
