"""Estimates held against measurements, and target files that keep what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecsi import target as targets
from edgecsi.cli import main
from edgecsi.errors import TargetError
from edgecsi.kernels.variants import candidates
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense, LayerNorm, Op, Softmax
from edgecsi.tune import calibrate


def test_factors_and_a_constant_bring_estimates_to_what_was_measured() -> None:
    rng = np.random.default_rng(0)
    true = {"dense": 2.0, "conv": 0.7, "elementwise": 1.2}
    rows = [
        calibrate.Row(kernel, e, (0.15 + factor * e) * rng.normal(1, 0.02), True)
        for kernel, factor in true.items()
        for e in np.geomspace(
            0.01 if kernel == "elementwise" else 0.5, 0.3 if kernel == "elementwise" else 50, 20
        )
    ]
    board = replace(targets.load("x86"), factors=(("dense", 3.0), ("other", 3.0)))
    found = calibrate.fit(board, "local", rows)
    assert found.call_us == pytest.approx(0.15, abs=0.03)
    assert found.factors == pytest.approx(true | {"other": 3.0}, rel=0.1)
    assert found.within_after == 1.0
    assert found.within_before < 0.7
    assert found.rank_after > found.rank_before


def test_a_sigmoid_has_a_price_of_its_own() -> None:
    rng = np.random.default_rng(1)
    rows = [
        calibrate.Row(kernel, e, (0.1 + e + 0.4e-3 * curves) * rng.normal(1, 0.02), True, curves)
        for kernel, least in (("conv", 0.5), ("elementwise", 0.02))
        for curves in (0, 0, 2048)
        for e in np.geomspace(least, 20 * least, 12)
    ]
    found = calibrate.fit(targets.load("x86"), "local", rows)
    assert found.curve_ns == pytest.approx(0.4, rel=0.2)
    assert found.factors == pytest.approx({"conv": 1.0, "elementwise": 1.0}, rel=0.15)
    assert found.within_after == 1.0


def test_a_factor_changes_what_is_chosen() -> None:
    board = targets.load("x86-64-v4")
    op = Dense(x=Layout((1, 512)), y=Layout((1, 256)), weight=np.ones((256, 512), np.float32) / 3)
    assert candidates(op, board)[0][0][0].name == "f32_dense"
    slower = replace(board, factors=(("f32_dense", 50.0),))
    assert candidates(op, slower)[0][0][0].name != "f32_dense"


def test_estimates_of_rows_are_near_what_zen_4_takes() -> None:
    board = replace(targets.load("x86-64-v4"), peak_gmacs_f32=59.0)
    measured: list[tuple[type[Op], tuple[int, int], float]] = [
        (LayerNorm, (32, 128), 0.676), (LayerNorm, (32, 64), 0.431), (LayerNorm, (64, 32), 0.551),
        (Softmax, (128, 32), 2.043), (Softmax, (64, 32), 1.032),
    ]  # fmt: skip
    for kind, shape, us in measured:
        op = kind(x=Layout(shape), y=Layout(shape))
        assert us / 1.3 < candidates(op, board)[0][0][2].seconds * 1e6 < us * 1.3


def test_the_written_target_builds_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "NETWORKS", ("fullycon",))
    out = tmp_path / "mine.toml"
    assert main(["targets", "calibrate", "x86", "-o", str(out)]) == 0
    assert "rank correlation" in capsys.readouterr().out
    found = targets.load(out)
    assert dict(found.factors)["f32_dense"] > 0
    assert found.mcpu == targets.load("x86").mcpu
    assert main(["build", "fullycon", "--target", str(out), "--dry-run"]) == 0


@pytest.mark.parametrize(
    "text", ["factors = 1", "[factors]\na = 0", "[factors]\na = true", "[factors]\n'A B' = 1.0"]
)
def test_broken_factors_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.toml"
    path.write_text(f'extends = "x86"\n{text}\n')
    with pytest.raises(TargetError, match="factors"):
        targets.load(path)
