"""The zoo: names, shapes, costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from edgecsi.errors import ModelError
from edgecsi.models import registry
from edgecsi.models.load import load_model
from edgecsi.models.registry import FAMILIES, cost, create, find, list_models

NAMES = [info.name for info in list_models()]
CSI = [name for name in NAMES if name != "fullycon"]


def test_every_family_at_every_compression_ratio() -> None:
    families = ("csinet", "crnet", "clnet", "convcsinet", "convsqucsinet")
    assert set(NAMES) == {f"{f}-cr{cr}" for f in families for cr in (4, 8, 16, 32, 64)} | {"fullycon"}


def test_listing_needs_no_torch() -> None:
    listing = "from edgecsi.models.registry import list_models; list_models()"
    script = f"import sys; {listing}; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


@pytest.mark.parametrize("name", CSI)
def test_a_csi_network_is_its_decoder_after_its_encoder(name: str) -> None:
    model = load_model(name, allow_random=True)
    x = torch.rand(3, 2, 32, 32)
    with torch.no_grad():
        codeword = model.entries["encoder"].module(x)
        y = model.entries["decoder"].module(codeword)
        torch.testing.assert_close(model.module(x), y, rtol=0, atol=0)
    assert codeword.shape == (3, 2048 // int(name.rsplit("cr", 1)[1]))
    assert y.shape == x.shape
    assert 0 <= float(y.min()) <= float(y.max()) <= 1


@pytest.mark.parametrize(
    "name", ["csinet-cr16", "crnet-cr16", "clnet-cr16", "convcsinet-cr16", "convsqucsinet-cr16"]
)
def test_every_entry_can_be_exported(name: str) -> None:
    for entry in load_model(name, allow_random=True).entries.values():
        program = torch.export.export(entry.module, (entry.example_input,))
        with torch.no_grad():
            torch.testing.assert_close(
                program.module()(entry.example_input), entry.module(entry.example_input)
            )


@pytest.mark.parametrize(
    ("name", "millions"), [("csinet-cr4", 5.41), ("crnet-cr4", 5.12), ("clnet-cr4", 4.03), ("fullycon", 0.13)]
)
def test_costs_are_the_published_ones(name: str, millions: float) -> None:
    model = load_model(name, allow_random=True)
    entries = {key: cost(entry.module, entry.example_input) for key, entry in model.entries.items()}
    assert entries["full"].macs / 1e6 == pytest.approx(millions, abs=0.006)
    if name != "fullycon":
        assert entries["full"].macs == entries["encoder"].macs + entries["decoder"].macs
        assert entries["full"].parameters == entries["encoder"].parameters + entries["decoder"].parameters


def test_fullycon_has_the_published_number_of_weights() -> None:
    model = load_model("fullycon", allow_random=True)
    assert cost(model.module, model.example_input).parameters == 130_820
    assert set(model.entries) == {"full"}


def test_fire_modules_make_it_smaller() -> None:
    def parameters(name: str) -> int:
        return sum(p.numel() for p in create(name).parameters())

    assert parameters("convsqucsinet-cr16") < parameters("convcsinet-cr16") / 3


def test_products_in_functional_calls_are_counted() -> None:
    class Attention(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x @ x.transpose(1, 2), -1) @ x

    assert cost(Attention(), torch.rand(1, 8, 16)).macs == 2 * 8 * 8 * 16


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ModelError, match="csinet-cr4"):
        find("csinet-c4")
    with pytest.raises(ModelError, match="edgecsi models"):
        find("???")


@pytest.mark.parametrize("config", [{}, {"cr": 5}, {"cr": 4, "width": 3}])
def test_a_wrong_configuration_is_refused(config: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="cr = 4, 8, 16"):
        create("csinet", **config)


def test_a_family_and_its_ratio_are_the_named_network() -> None:
    assert create("crnet", cr=8).state_dict().keys() == create("crnet-cr8").state_dict().keys()
    assert not create("fullycon").training


def test_every_family_cites_its_paper() -> None:
    assert all("arXiv" in family.paper for family in FAMILIES.values())


@pytest.mark.parametrize("info", [info for info in list_models() if info.weights], ids=lambda info: info.name)
def test_shipped_weights_say_how_they_were_made(info: object) -> None:
    model = load_model(info.name)
    assert model.sha256
    assert model.metadata["model"] == model.name
    assert model.metadata["command"].startswith(f"edgecsi train {model.name} --data ")
    assert model.metadata["metric"] in model.metadata
    assert {"seed", "data", "epochs", "versions"} <= set(model.metadata)


def test_compressed_networks_that_ship_are_of_the_zoo() -> None:
    """A bundle's own word may make edgecsi load these."""
    for name in ("csinet-cr4", "fullycon", *registry.list_compressed()):
        assert registry.ships(name)
    for name in ("csinet-cr4+nothing", "csinet-cr4+../../x", "net.py:make", "csinet", "/tmp/x.safetensors"):
        assert not registry.ships(name)
