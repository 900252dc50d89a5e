"""Untrained networks of the zoo, and a few samples to compress them with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgecsi.channels.shipped import test_set as shipped_channels
from edgecsi.compress import reconstruct, round_pair
from edgecsi.models.checkpoints import write_weights
from edgecsi.models.registry import create
from edgecsi.training.tasks import Detection


@pytest.fixture(scope="module")
def short() -> Iterator[None]:
    """Scores of fewer samples, weights pruned in fewer rounds, and rounded together in fewer turns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detection, "held_out", 1000)
        patch.setattr(Detection, "report", lambda self, model: {})
        patch.setattr(reconstruct, "_ROUNDS", 2)
        patch.setattr(round_pair, "_TURNS", 2)
        patch.setattr(round_pair, "_BEGINNINGS", 2)
        yield


def untrained(name: str, folder: Path) -> str:
    torch.manual_seed(0)
    out = folder / f"{name}.safetensors"
    write_weights(out, create(name).state_dict(), {"model": name})
    return str(out)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    return untrained("fullycon", tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def csi_network(tmp_path_factory: pytest.TempPathFactory) -> str:
    return untrained("csinet-cr64", tmp_path_factory.mktemp("csi"))


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COST2100 file of 60 samples."""
    from scipy.io import savemat

    path = tmp_path_factory.mktemp("data") / "DATA_Htrainin.mat"
    savemat(path, {"HT": shipped_channels(60).reshape(60, 2048)})
    return path
