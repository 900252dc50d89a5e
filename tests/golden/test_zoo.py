"""Every network of the zoo, every entry, on x86 and on the Pi: compiled equals PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgecsi.bundle import Bundle
from edgecsi.channels.shipped import test_set as shipped_channels
from edgecsi.compress import post_training
from edgecsi.compress.post_training import compressed
from edgecsi.device import open_device
from edgecsi.models import registry
from edgecsi.models.load import LoadedModel
from tests._builds import build_for
from tests._every_case import EVERY_CASE

TARGETS = ("host", "x86", "rpi4", "rpi5")
# Every family at its smallest size; csinet at its largest too, whose dense layers are something else.
MODELS = [
    "csinet-cr4",
    *(f"{f.name}-cr{max(f.ratios)}" if f.ratios else f.name for f in registry.FAMILIES.values()),
]


def _pairs() -> Iterator[tuple[str, str]]:
    """Every network on an x86 and on an ARM, in turns; in CI on all four."""
    for number, model in enumerate(MODELS):
        for target in TARGETS if EVERY_CASE else (TARGETS[number % 2], TARGETS[2 + number % 2]):
            yield model, target


@pytest.mark.parametrize(("model", "target"), [*_pairs()])
def test_the_library_answers_what_pytorch_answers(model: str, target: str, tmp_path: Path) -> None:
    manifest = build_for(model, target, tmp_path / "bundle", allow_random=True).manifest
    assert set(manifest.entries) == set(registry.find(model).entries)
    check = manifest.check
    assert check.status == "passed"
    assert set(check.entries) == set(manifest.entries)
    for name, entry in check.entries.items():
        assert entry.max_rel_diff <= 1e-5, name
    full = check.entries["full"]
    if registry.find(model).family != "fullycon":  # a detector has bit errors, no NMSE
        assert full.nmse_db is not None
        assert full.nmse_db_pytorch is not None
        assert abs(full.nmse_db - full.nmse_db_pytorch) <= 0.01


def _int8(recipe: str, target: str, folder: Path, entry: str | None = None) -> tuple[Bundle, NDArray[Any]]:
    """A quantised csinet-cr64, or one entry of it, and what it answers."""
    torch.manual_seed(0)
    np.save(folder / "calibration.npy", shipped_channels(16))
    calibration = str(folder / "calibration.npy") if recipe != "int8-dynamic" else None
    result = build_for(
        "csinet-cr64",
        target,
        folder / target,
        recipe=recipe,
        calib=calibration,
        allow_random=True,
        entry=entry,
    )
    assert result.manifest.check.status == "passed"
    assert result.bundle is not None
    layers = [layer for entry in result.manifest.entries.values() for layer in entry.layers]
    assert {layer.bits for layer in layers if layer.op == "dense"} == {8}
    device = open_device("local" if target in ("host", "x86") else "emulate")
    return result.bundle, device.run(result.bundle, "full", shipped_channels(16))


@pytest.mark.parametrize("recipe", ["int8-static", "int8-wide"])
def test_static_int8_gives_the_same_bits_on_every_processor(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[LoadedModel] = []

    def once(*arguments: Any) -> LoadedModel:
        if not made:
            made.append(compressed(*arguments))
        return made[0]

    monkeypatch.setattr(post_training, "compressed", once)  # the very same network for all
    answers = {}
    for target in TARGETS:
        bundle, answers[target] = _int8(recipe, target, tmp_path, "full")
        layers = [layer for layer in bundle.manifest.entries["full"].layers if layer.op == "conv2d"]
        assert {layer.bits for layer in layers} == {8}
    for target in TARGETS[1:]:
        assert np.array_equal(answers[target], answers["host"]), target


@pytest.mark.parametrize("target", TARGETS)
def test_int8_dynamic_builds_without_data(target: str, tmp_path: Path) -> None:
    bundle, answer = _int8("int8-dynamic", target, tmp_path)
    assert np.isfinite(answer).all()
    for entry in bundle.manifest.entries.values():
        for layer in entry.layers:
            if layer.op == "dense":
                assert layer.kernel.startswith(("qd8_", "f32_qs8w_"))
