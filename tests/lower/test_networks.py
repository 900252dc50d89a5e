"""A user's own network builds for every kind of target and computes what PyTorch computes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

import edgecsi
from edgecsi.compress import post_training
from edgecsi.models.load import LoadedModel, load_model
from tests._builds import NETWORKS, build_for, pytorch
from tests.lower import networks

pytestmark = pytest.mark.filterwarnings("ignore::edgecsi.errors.Notice")  # untrained networks
TOLERANCE = 1e-5  # of the largest output


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_users_network_matches_pytorch(name: str, tmp_path: Path) -> None:
    build_for(f"{NETWORKS}:{name}", "host", tmp_path / "out")
    module, example = networks.NETWORKS[name]()
    random = np.random.default_rng(7)
    library = edgecsi.load(tmp_path / "out")
    for x in (
        example.numpy(),
        random.normal(0, 3, example.shape).astype(np.float32),
        np.zeros(example.shape),
    ):
        wanted = pytorch(module, x)
        found = library.run(x.astype(np.float32))
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["attention_gelu", "grouped", "mixed"])
def test_a_users_network_matches_pytorch_on_the_pi(name: str, tmp_path: Path) -> None:
    result = build_for(f"{NETWORKS}:{name}", "rpi4", tmp_path / "out")
    assert result.manifest.check.status == "passed"
    assert result.manifest.check.entries["full"].max_rel_diff <= TOLERANCE


def test_concatenations_are_written_in_place(tmp_path: Path) -> None:
    """No call only moves data: what feeds a concatenation writes into it, at the offset of its channels."""
    result = build_for(
        f"{NETWORKS}:branches", "host", tmp_path / "out", dry_run=True, dump_ir=tmp_path / "ir"
    )
    layers = result.manifest.entries["full"].layers
    assert [layer.op for layer in layers].count("conv2d") == 4
    # x is the caller's and the first concatenation is read twice, so these are copied, each once
    assert len(layers) <= 4 + 4, [layer.name for layer in layers]


@pytest.fixture(scope="module", params=["int8-static", "int8-wide"])
def branches_in_int8(request: pytest.FixtureRequest) -> LoadedModel:
    """6 and 5 channels are concatenated in place where int8 kernels read groups of 4 or more at once."""
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "calibration.npy"
        np.save(calibration, np.random.default_rng(0).random((16, 2, 32, 32), np.float32))
        return post_training.compressed(load_model(f"{NETWORKS}:branches"), request.param, str(calibration))


@pytest.mark.parametrize("target", ["x86-64-v3", "host", "rpi4", "rpi5"])
def test_int8_branches_that_do_not_fill_a_group_of_channels(
    branches_in_int8: LoadedModel, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = networks.branches()
    monkeypatch.setattr(post_training, "compressed", lambda *_: branches_in_int8)
    result = build_for(f"{NETWORKS}:branches", target, tmp_path / "out", recipe="int8-static")
    layers = [layer for layer in result.manifest.entries["full"].layers if layer.op == "conv2d"]
    assert {layer.bits for layer in layers} == {8}
    # The check compares with the integer network bit for bit, up to roundings of the fp32 steps behind it.
    check = result.manifest.check
    assert check.status == "passed"
    assert check.entries["full"].max_rel_diff <= 1e-5
    if target == "host":
        x = np.random.default_rng(0).random((1, 2, 32, 32), np.float32)
        wanted = pytorch(module, x)
        found = edgecsi.load(tmp_path / "out").run(x)
        assert np.mean((found - wanted) ** 2) <= 1e-2 * np.mean(wanted**2)
