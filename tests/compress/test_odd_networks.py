"""Networks that are unusual for what compresses them, and right all the same."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgecsi import rounding, verdict
from edgecsi.check import _explained
from edgecsi.compress import apply_post_training, compress, recipe
from edgecsi.errors import Notice
from edgecsi.models.compressed.layers import CompressedLayer
from edgecsi.models.load import load_model

pytestmark = pytest.mark.filterwarnings("ignore::edgecsi.errors.Notice")

NETWORKS = """
import torch
from torch import nn

def frozen():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    return net.requires_grad_(False), torch.zeros(1, 32)

def weight_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)), nn.Linear(32, 4)), torch.zeros(1, 32)
"""


@pytest.fixture
def networks(tmp_path: Path) -> str:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32))
    (tmp_path / "net.py").write_text(NETWORKS)
    return f"{tmp_path}/net.py"


def test_a_network_that_is_frozen_for_use_can_be_trained(networks: str, tmp_path: Path) -> None:
    steps = '[[steps]]\ndo = "prune"\npattern = "unstructured"\nsparsity = 0.5\nepochs = 1\n'
    out, data = tmp_path / "small.safetensors", str(tmp_path / "x.npy")
    compress(f"{networks}:frozen", recipe.parse(steps, "half"), data, out, accept_loss=True)
    after = load_model(f"{networks}:frozen", str(out)).module
    assert int((after[0].weight == 0).sum()) >= 256


def test_computed_weights_are_read_back(networks: str, tmp_path: Path) -> None:
    """A file of a network with weight_norm loads beside the network as it was, which shares its classes."""
    out = tmp_path / "small.safetensors"
    compress(f"{networks}:weight_norm", "int8-weights", None, out)
    loaded = load_model(f"{networks}:weight_norm", str(out))
    x = torch.randn(5, 32)
    with torch.no_grad():
        whole = load_model(f"{networks}:weight_norm").module(x)
        assert float((loaded.module(x) - whole).abs().max()) < 0.02 * float(whole.abs().max())


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.last = nn.Linear(32, 16), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(nn.functional.linear(torch.relu(self.encode(x)), self.encode.weight.T))
        return y


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic", "int8-weights", "int16"])
def test_a_layer_whose_weight_is_read_elsewhere_stays_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    net, x = Tied().eval(), torch.randn(64, 32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small = apply_post_training(net, x[:1], name, x)
    said = [str(warning.message) for warning in caught if warning.category is Notice]
    assert name == "int16" or any("1 Linear (encode)" in line for line in said)
    assert isinstance(small.last, CompressedLayer)
    assert type(small.encode) is nn.Linear
    with torch.no_grad():
        assert float((small(x) - net(x)).abs().max()) < 0.03 * float(net(x).abs().max())


def test_rounding_before_a_layer_of_two_planes_is_allowed_for() -> None:
    """Attention and normalisation are sums in fp32; what reads them rounds to codes."""
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x = torch.randn(64, 10, 32)
    wide = apply_post_training(net, x[:1], "int8-wide", x)
    assert rounding.allowed(wide, [(x[:16],)]) > 2 * verdict.NARROW


class Signs(nn.Module):
    """A codeword of signs, of which one number in the first sample lies on the edge."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.edge = nn.Linear(32, 48), nn.Parameter(torch.zeros(48))

    def forward(self, x: Tensor) -> Tensor:
        return (self.first(x) > self.edge).float()


def test_a_sign_on_the_edge_may_be_either_behind_a_quantiser() -> None:
    torch.manual_seed(0)
    net, x = Signs().eval(), torch.randn(4, 32)
    small = apply_post_training(net, x[:1], "int8-dynamic", x)
    with torch.no_grad():
        small.edge[7] = small.first(x[:1])[0, 7]
        calls = [(one,) for one in x.split(1)]
        signs = np.stack([small(one).numpy() for (one,) in calls])
    least = rounding.allowed(small, calls)
    for other, right in ((7, True), (8, False)):
        found = signs.copy()
        found[0, 0, other] = 1 - found[0, 0, other]
        assert (_explained(small, calls, [found], least) is not None) == right
