"""What each layer costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgecsi.compress import layer_costs, recipe, sensitivity
from edgecsi.errors import RecipeError
from tests.compress.test_run import PRUNE, QUANTIZE

pytestmark = [
    pytest.mark.usefixtures("short"),
    pytest.mark.filterwarnings("ignore::edgecsi.errors.Notice"),  # untrained networks, few samples
]


def test_layers_have_a_price(detector: str) -> None:
    names = {f"layers.fc{i}" for i in range(1, 6)}
    text = f'[[steps]]\n{PRUNE}\n{QUANTIZE}bits = 3\nkeep-fp32 = ["*.fc1"]'
    told: list[str] = []
    found = layer_costs(
        detector, recipe.parse(text, "t"), "mimo:2000", progress=lambda done, total, what: told.append(what)
    )
    assert found.metric == "ber"
    assert {cost.layer for cost in found.layers if cost.step == "prune"} == names
    assert {cost.layer for cost in found.layers if cost.step == "quantize"} == names - {"layers.fc1"}
    assert "prune: layers.fc3" in told
    for kind in ("prune", "quantize"):
        prices = [cost.cost for cost in found.layers if cost.step == kind]
        assert prices == sorted(prices, reverse=True)
    assert all(cost.score - found.before == cost.cost for cost in found.layers)


def test_the_dearest_layers_are_kept(
    csi_network: str, channels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = {"encoder.conv3x3.conv": 2.0, "encoder.fc": 0.2, "decoder.fc": 0.2}

    def one_more(module: torch.nn.Module, *_: object) -> Iterator[tuple[str, object]]:
        yield from prices.items()

    monkeypatch.setattr(sensitivity, "_changed_by_int8", one_more)
    monkeypatch.setattr(
        sensitivity, "score", lambda module, task: module if isinstance(module, float) else 0.0
    )
    found = layer_costs(csi_network, "int8-static", channels)
    assert found.keep_fp32 == ("encoder.conv3x3.conv", "encoder.fc")
    assert found.budget == 0.3


@pytest.mark.parametrize("scope", ["layer", "global", "sensitivity"])
@pytest.mark.parametrize("criterion", ["magnitude", "reconstruct"])
def test_zeros_have_a_price(csi_network: str, channels: Path, scope: str, criterion: str) -> None:
    text = f'[[steps]]\ndo = "prune"\npattern = "bsr16x4"\nsparsity = 0.5\nscope = "{scope}"\n'
    text += f'criterion = "{criterion}"\ncodeword = "rotate"'
    found = layer_costs(csi_network, recipe.parse(text, "t"), channels)
    assert {cost.layer for cost in found.layers} == {"encoder.fc", "decoder.fc"}
    assert found.keep_fp32 == ()


@pytest.mark.parametrize("name", ["int16", "f16"])
def test_sixteen_bits_have_a_price(csi_network: str, channels: Path, name: str) -> None:
    found = layer_costs(csi_network, name, channels)
    assert {"encoder.fc", "decoder.fc"} < {cost.layer for cost in found.layers}
    assert max(abs(cost.cost) for cost in found.layers) < 0.02
    assert found.keep_fp32 == ()


def test_only_steps_that_lose_something_have_a_price(detector: str) -> None:
    with pytest.raises(RecipeError, match="neither prunes nor quantises"):
        layer_costs(detector, "distill", "mimo:2000")
