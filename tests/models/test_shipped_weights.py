"""The weights in the package do what their record says, on the channels in the package."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from edgecsi.channels.metrics import nmse_db
from edgecsi.channels.shipped import test_set as shipped_set
from edgecsi.models import fullycon
from edgecsi.models.load import load_model
from edgecsi.models.registry import list_models

SHIPPED = ("csinet-cr4", "csinet-cr16", "crnet-cr16")


def test_what_ships() -> None:
    assert {info.name for info in list_models() if info.weights} == {*SHIPPED, "fullycon"}


@pytest.mark.parametrize("name", SHIPPED)
def test_csi_networks_reach_their_recorded_nmse(name: str) -> None:
    model = load_model(name)
    x = shipped_set()
    with torch.no_grad():
        y = model.module(torch.from_numpy(x)).numpy()
    recorded = json.loads(model.metadata["test_nmse_db"])["umi"]
    assert nmse_db(x, y) == pytest.approx(recorded, abs=0.001)
    assert recorded < -8


def test_fullycon_beats_zero_forcing_everywhere() -> None:
    module = load_model("fullycon").module

    def detect(received: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(received)).numpy()

    rates = fullycon.error_rates(detect, transmissions=20_000)
    for network, zero_forcing, matched in zip(
        rates["fullycon"], rates["zero_forcing"], rates["matched_filter"], strict=True
    ):
        assert network < zero_forcing < matched
