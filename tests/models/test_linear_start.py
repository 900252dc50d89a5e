"""The beginning of a training: the best linear network, where a network can be one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgecsi.channels.metrics import nmse_db
from edgecsi.channels.shipped import test_set as shipped_set
from edgecsi.models import registry
from edgecsi.models.blocks import Autoencoder


def network(name: str) -> Autoencoder:
    torch.manual_seed(0)
    made = registry.create(name)
    assert isinstance(made, Autoencoder)
    return made


def principal_components(samples: np.ndarray, kept: int) -> float:
    """NMSE in dB of the best linear network of this codeword."""
    flat = samples.reshape(len(samples), -1)
    centred = flat - flat.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:kept]
    return nmse_db(samples, (centred @ axes.T @ axes + flat.mean(0)).reshape(samples.shape))


@pytest.mark.parametrize(
    ("name", "codeword"), [("csinet-cr64", 32), ("csinet-cr16", 128), ("crnet-cr64", 32)]
)
def test_it_has_most_of_what_principal_components_give(name: str, codeword: int) -> None:
    """Not all: activations and the sigmoid bend what a linear network would not."""
    samples = shipped_set(300)
    model = network(name).eval()
    with torch.no_grad():
        assert nmse_db(samples, model(torch.from_numpy(samples)).numpy()) > -0.1
        assert model.start_linear(torch.from_numpy(samples))
        after = nmse_db(samples, model(torch.from_numpy(samples)).numpy())
    assert after < 0.5 * principal_components(samples, codeword)


def test_fewer_samples_than_entries_of_the_codeword_will_do() -> None:
    model = network("csinet-cr16")
    assert model.start_linear(torch.from_numpy(shipped_set(9)))
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert bool((model.encoder.fc.weight != 0).any(1).all())  # none is dead


def test_a_network_without_such_a_beginning_stays_as_it_is() -> None:
    model = network("clnet-cr64")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert not model.start_linear(torch.from_numpy(shipped_set(4)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
