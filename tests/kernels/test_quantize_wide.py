"""Two planes of codes: every group of channels, odd sizes, halos, values far out of range, halves."""

from __future__ import annotations

import numpy as np

from edgecsi.kernels.variants import all_kernels
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Quant, QuantizeWide, plane_channels
from edgecsi.target import load
from edgecsi.tune.harness import Case
from tests.kernels.common import check, on_targets


@on_targets("x86-64-v3", "host", "rpi4", "rpi5")
def test_matches_its_reference(target: str) -> None:
    rng = np.random.default_rng(0)
    kernel = all_kernels()["quantize_wide"]
    cases = []
    for channels, height, width, group, halo in [
        (2, 32, 32, 2, (1, 1, 1, 1)),
        (4, 3, 5, 4, (0, 0, 0, 0)),
        (7, 9, 16, 4, (0, 0, 1, 1)),
        (3, 4, 19, 4, (2, 1, 3, 0)),
        (3, 5, 7, 2, (1, 1, 1, 1)),
        (8, 4, 32, 1, (0, 0, 4, 4)),
        (5, 2, 8, 1, (0, 0, 0, 0)),
    ]:
        quant = Quant(0.037, int(rng.integers(0, 256)), float(rng.choice([0.0, 0.5])))
        x = Layout((2, channels, height, width))
        y = Layout(
            (2, 2 * plane_channels(channels), height, width), "uint8", halo, group, fill=quant.zero_point
        )
        values = rng.normal(0, 2, x.shape).astype(np.float32)
        values.flat[:3] = 1e9, -1e9, quant.offset + 0.5 * quant.scale
        op = QuantizeWide(x=x, y=y, y_quant=quant, fine=8)
        cases.append(Case(kernel, op, [values]))
    check(cases, target)


def test_groups_that_would_hold_both_planes_are_refused() -> None:
    y = Layout((1, 4, 8, 8), "uint8", group=4)
    op = QuantizeWide(x=Layout((1, 2, 8, 8)), y=y, y_quant=Quant(0.1, 9), fine=16)
    assert "both planes" in all_kernels()["quantize_wide"].refuses(op, load("rpi4"))


def test_the_second_plane_adds_three_bits() -> None:
    quant = Quant(0.1, 128)
    x = np.random.default_rng(0).uniform(-10, 10, (1, 1, 64, 64)).astype(np.float32)
    op = QuantizeWide(x=Layout(x.shape), y=Layout((1, 4, 64, 64), "uint8"), y_quant=quant, fine=8)
    high, rest, low, _ = (op.reference(x).astype(np.float64) - 128).transpose(1, 0, 2, 3)
    assert not rest.any()
    assert np.abs((high + low / 8) * 0.1 - x[0]).max() <= 0.1 / 16 + 1e-6
