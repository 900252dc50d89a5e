"""Half-precision weights as a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgecsi.bundle import read_bundle
from edgecsi.compress import apply_post_training
from edgecsi.compress.size import stored_bytes
from edgecsi.errors import RecipeError
from edgecsi.pipeline import BuildOptions, build

NET = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(512, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)), torch.zeros(1, 512)
"""


def test_dense_weights_become_half_precision_numbers_and_nothing_else() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(18, 8), nn.MultiheadAttention(8, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    step_net = nn.Sequential(net[0], net[1], net[2])
    made = apply_post_training(step_net, torch.zeros(1, 2, 8), "f16-weights")
    assert torch.equal(made[2].weight, before["2.weight"].half().float())
    assert torch.equal(made[2].bias, before["2.bias"])
    assert torch.equal(made[0].weight, before["0.weight"])
    assert torch.equal(net[2].weight, before["2.weight"])
    assert stored_bytes(made) < 0.62 * stored_bytes(step_net)


def test_the_library_halves(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    sizes = {}
    for recipe in (None, "f16-weights"):
        out = tmp_path / str(recipe)
        build(BuildOptions(model=f"{tmp_path / 'net.py'}:make", target="x86", out=out, recipe=recipe))
        manifest = read_bundle(out).manifest
        sizes[recipe] = manifest.entries["full"].weight_bytes
        assert {layer.bits for layer in manifest.entries["full"].layers} == {16 if recipe else 32}
    assert sizes["f16-weights"] < 0.51 * sizes[None]


def test_a_weight_that_is_too_large_is_named() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        net[0].weight[0, 0] = 1e6
    with pytest.raises(RecipeError, match="0 has a weight of 1e"):
        apply_post_training(net, torch.zeros(1, 4), "f16-weights")
