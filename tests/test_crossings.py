"""Where features meet: fixed batches, single numbers, outputs without samples, recipes, halves, batches of calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgecsi
from edgecsi.bundle import read_bundle
from edgecsi.compress import compress
from edgecsi.device import open_device
from edgecsi.errors import DataError
from edgecsi.evaluate import evaluate_data, judge

SOURCE = '''
import torch
from torch import nn

class Fixed(nn.Module):
    """Takes a number and two samples, no more and no fewer; the mean is of both."""
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.places = nn.Parameter(torch.randn(2, 8))

    def forward(self, scale, x):
        y = self.last(torch.relu(self.first(x.view(2, 8)))) * scale + self.places
        return y, y.square().mean()

class Squeezed(nn.Module):
    """Its codeword has no sample axis."""
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 4), nn.Linear(4, 8)

    def encode(self, x):
        return self.first(x).squeeze(0)

    def decode(self, codeword):
        return self.last(codeword[None])

    def forward(self, x):
        return self.decode(self.encode(x))

class Number(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 6)

    def forward(self, x):
        return self.layer(x.reshape(1, 1)).sum()

class Places(nn.Module):
    """An encoder of integers."""
    def __init__(self):
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(10, 4), nn.Linear(24, 4), nn.Linear(4, 8)

    def encode(self, places):
        return self.first(self.table(places).flatten(1))

    def decode(self, codeword):
        return self.last(codeword)

    def forward(self, places):
        return self.decode(self.encode(places))

def made(kind, *example):
    torch.manual_seed(0)
    return kind(), example

def fixed():
    return made(Fixed, torch.tensor(0.7), torch.randn(2, 8))

def squeezed():
    return made(Squeezed, torch.randn(1, 8))

def number():
    return made(Number, torch.tensor(0.5))

def places():
    return made(Places, torch.randint(10, (1, 6)))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the networks, and data for them."""
    folder = tmp_path_factory.mktemp("crossings")
    (folder / "nets.py").write_text(SOURCE)
    random = np.random.default_rng(0)
    np.savez(folder / "fixed.npz", scale=0.3, x=random.standard_normal((33, 8)))
    np.save(folder / "numbers.npy", random.standard_normal(64))
    return folder


def test_a_network_of_one_batch_and_a_number_is_calibrated_and_evaluated(folder: Path) -> None:
    """Its batch is a call's, its first input has no samples, nor has its second output; one sample is left over."""
    model, data = f"{folder}/nets.py:fixed", f"{folder}/fixed.npz"
    edgecsi.build(model, "host", recipe="int8-static", calib=data, out=folder / "fixed")
    bundle = read_bundle(folder / "fixed")
    found, _ = evaluate_data(bundle, data, open_device("local"), model=model, calib=data)
    judge(bundle, found)
    assert found.differences["full"].max_rel_diff < 1e-5
    np.savez(folder / "few.npz", scale=0.3, x=np.zeros((1, 8)))
    with pytest.raises(DataError, match=r"holds 1 sample\(s\)"):
        edgecsi.build(model, "host", recipe="int8-static", calib=f"{folder}/few.npz", out=folder / "few")


def test_it_is_compressed_call_by_call(folder: Path) -> None:
    recipe = folder / "some.toml"
    recipe.write_text(
        'description = "A few weights zero, trained on, then int8."\n'
        '[[steps]]\ndo = "prune"\nsparsity = 0.1\npattern = "unstructured"\nepochs = 1\nlr = 1e-4\n'
        '[[steps]]\ndo = "quantize"\nmode = "dynamic"\n'
    )
    out = folder / "fixed.safetensors"
    done = compress(f"{folder}/nets.py:fixed", recipe, f"{folder}/fixed.npz", out, batch=4)
    assert done.after < -13


def test_a_codeword_without_samples_is_as_good_as_another(folder: Path) -> None:
    bundle = edgecsi.build(
        f"{folder}/nets.py:squeezed", "host", recipe="int8-dynamic", out=folder / "s"
    ).bundle
    assert bundle is not None
    assert bundle.entry("decoder").inputs[0].shape == (4,)
    assert bundle.manifest.check.status == "passed"


def test_numbers_are_calibrated_with_and_come_in_batches(folder: Path) -> None:
    model, data = f"{folder}/nets.py:number", f"{folder}/numbers.npy"
    edgecsi.build(model, "host", recipe="int8-dynamic", calib=data, batches=(3,), out=folder / "n")
    x = np.float32([0.5, -1, 2])
    with edgecsi.load(folder / "n") as loaded:
        together = loaded.run(x, entry="full_b3")
        np.testing.assert_allclose(together, [loaded.run(one) for one in x], rtol=1e-6)


def test_a_decoder_is_built_alone_whose_encoder_takes_integers(folder: Path) -> None:
    done = edgecsi.build(f"{folder}/nets.py:places", "host", entry="decoder", batches=(2,), out=folder / "d")
    assert set(done.manifest.check.entries) == {"decoder", "decoder_b2"}
