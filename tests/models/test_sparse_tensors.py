"""Pruned weights take little room in a file, and come back as they were; files that lie are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgecsi.errors import ModelError
from edgecsi.models.checkpoint_files import read_state
from edgecsi.models.checkpoints import write_weights
from edgecsi.models.sparse_tensors import pack


def test_round_trip_and_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pruned = torch.randn(90, 33) * (torch.rand(90, 33) > 0.9)
    state = {"a.weight": pruned, "b.weight": (pruned * 40).to(torch.int8), "c.weight": torch.randn(5, 5),
             "d.weight": torch.zeros(3, 4), "bias": torch.zeros(7)}  # fmt: skip
    path = tmp_path / "w.safetensors"
    write_weights(path, state, {"model": "m"})
    assert path.stat().st_size < 3500 < 5 * pruned.numel()
    found, metadata = read_state(path)
    assert metadata["model"] == "m"
    assert sorted(found) == sorted(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_list_of_shapes_from_an_earlier_file_is_dropped(tmp_path: Path) -> None:
    """Weights that were pruned are read, filled again, and written with the metadata they came with."""
    path = tmp_path / "w.safetensors"
    write_weights(path, {"a": torch.eye(8), "b": torch.eye(9)}, {"model": "m"})
    _, metadata = read_state(path)
    assert set(json.loads(metadata["sparse"])) == {"a", "b"}

    for state, packed in (({"a": torch.ones(8, 8)}, None), ({"a": torch.eye(8)}, {"a": [8, 8]})):
        write_weights(path, state, metadata)
        found, read = read_state(path)
        assert torch.equal(found["a"], state["a"])
        assert read["model"] == "m"
        assert (json.loads(read["sparse"]) if "sparse" in read else None) == packed


@pytest.mark.parametrize(
    "shapes",
    [
        [1],
        {"a": [8, 9]},
        {"a": [8, -8]},
        {"a": [1 << 40, 1 << 40]},
        {"a": [64]},
        {"b": [8, 8]},
        {"a": [True, 64]},
    ],
)
def test_shapes_that_do_not_fit_are_refused(tmp_path: Path, shapes: object) -> None:
    tensors, _ = pack({"a": torch.eye(8)})
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "w.safetensors", {"sparse": json.dumps(shapes)})
    with pytest.raises(ModelError, match="damaged"):
        read_state(tmp_path / "w.safetensors")


def test_a_mask_that_does_not_fit_the_values_is_refused(tmp_path: Path) -> None:
    tensors, note = pack({"a": torch.eye(8)})
    tensors["a.values"] = torch.ones(7)
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "w.safetensors", note)
    with pytest.raises(ModelError, match="damaged"):
        read_state(tmp_path / "w.safetensors")


def test_a_file_cannot_claim_more_than_the_network_holds(tmp_path: Path) -> None:
    """An empty mask of a bit a number would otherwise take 64 times the file's size."""
    write_weights(
        tmp_path / "w.safetensors", {"a": torch.zeros(800, 800, dtype=torch.float64)}, {"model": "m"}
    )
    assert read_state(tmp_path / "w.safetensors", most=640_000)[0]["a"].shape == (800, 800)
    with pytest.raises(ModelError, match="more numbers than the 639,999 of the network"):
        read_state(tmp_path / "w.safetensors", most=639_999)
