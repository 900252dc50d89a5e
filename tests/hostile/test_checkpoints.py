"""Checkpoints that are broken or malicious: refused by name, and nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgecsi.errors import ModelError
from edgecsi.models.checkpoints import write_weights
from edgecsi.models.load import load_model
from edgecsi.models.registry import create
from tests.models.test_checkpoints import cut, random_model


def changed(key: str, change: Callable[[torch.Tensor], object]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        state: dict[str, object] = dict(random_model("csinet-cr64").state_dict())
        value = state[key]
        assert isinstance(value, torch.Tensor)
        state[key] = change(value.clone())
        torch.save(state, path)

    return make


class Runs:
    """A pickle that runs a command when it is loaded without care."""

    def __init__(self, marker: Path, depth: int = 0) -> None:
        self.marker, self.depth = marker, depth

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        if self.depth:
            return (list, ([Runs(self.marker, self.depth - 1)],))
        return (os.system, (f"touch '{self.marker}'",))


def pickled_code(depth: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(pickle.dumps({"state_dict": Runs(path.with_name("executed"), depth)}, 2))

    return make


def zipped_code(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Runs(path.with_name("executed")), 2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("../../escaped", "x")


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100 << 20))


def exported(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/archive_format", "pt2")


def cut_legacy(path: Path) -> None:
    torch.save(random_model("csinet-cr64").state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)

    return make


def tensor(shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}}


def not_finite(value: torch.Tensor) -> torch.Tensor:
    value.view(-1)[0] = torch.inf
    return value


FC = "encoder.fc.weight"
BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "not there": ("a.pth", lambda path: None, "no such file"),
    "empty": ("a.pth", lambda path: path.write_bytes(b""), "cannot be loaded"),
    "random bytes": ("a.pth", lambda path: path.write_bytes(os.urandom(5000)), "cannot be loaded"),
    "cut": ("a.pth", cut, "a.pth"),
    "cut legacy": ("a.pth", cut_legacy, "cannot be loaded"),
    "code": ("a.pth", pickled_code(0), "system"),
    "code within lists": ("a.pth", pickled_code(20), "it wants to run"),
    "code in a zip": ("a.pth", zipped_code, "cannot be loaded"),
    "zip bomb": ("a.pth", zip_bomb, "zip bomb"),
    "exported program": ("a.pt2", exported, "exported program"),
    "exported program, renamed": ("a.pth", exported, "exported program"),
    "a whole model": ("a.pth", lambda path: torch.save(create("fullycon"), path), "edgecsi.models"),
    "a list": ("a.pth", lambda path: torch.save([torch.zeros(1)], path), "holds a list"),
    "not tensors": (
        "a.pth",
        lambda path: torch.save({"epoch": 3, "lr": 0.1}, path),
        "not tensors: epoch, lr",
    ),
    "no weights": ("a.pth", lambda path: torch.save({"state_dict": {}}, path), "holds no weights"),
    "other ratio": (
        "a.pth",
        lambda path: torch.save(create("csinet-cr4").state_dict(), path),
        "encoder.fc.weight [512, 2048] instead of [32, 2048]",
    ),
    "other network": (
        "a.pth",
        lambda path: torch.save(create("fullycon").state_dict(), path),
        "unexpected: layers.fc1.bias",
    ),
    "complex": ("a.pth", changed(FC, lambda w: w.to(torch.complex64)), "encoder.fc.weight (complex64)"),
    "integers": ("a.pth", changed(FC, lambda w: w.to(torch.int8)), "encoder.fc.weight (int8)"),
    "sparse": ("a.pth", changed(FC, lambda w: w.to_sparse()), "encoder.fc.weight"),
    "infinite": ("a.pth", changed(FC, not_finite), "NaN or infinity"),
    "negative variance": (
        "a.pth",
        changed("encoder.features.conv3x3.bn.running_var", lambda v: -v),
        "negative variances",
    ),
    "enormous by stride": (
        "a.pth",
        changed(FC, lambda w: torch.zeros(1).expand(1 << 20, 1 << 20)),
        "instead of [32, 2048]",
    ),
    "safetensors: empty": ("a.safetensors", lambda path: path.write_bytes(b""), "damaged"),
    "safetensors: header too long": ("a.safetensors", safetensors({}, length=1 << 60), "claims"),
    "safetensors: not JSON": ("a.safetensors", safetensors(b"{{{{"), "not JSON"),
    "safetensors: deep": ("a.safetensors", safetensors(b"[" * 1_000_000), "not JSON"),
    "safetensors: a list": ("a.safetensors", safetensors([1]), "no table"),
    "safetensors: outside": ("a.safetensors", safetensors(tensor([1], 0, 1 << 40)), "outside the file"),
    "safetensors: shape lies": (
        "a.safetensors",
        safetensors(tensor([1 << 30], 0, 8), bytes(8)),
        "damaged",
    ),
    "safetensors: no offsets": ("a.safetensors", safetensors({"a": {"dtype": "F32"}}), "no offsets"),
    "safetensors: offsets of text": (
        "a.safetensors",
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["x", 4]}}, bytes(4)),
        "no offsets",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints_are_refused_by_name_and_run_nothing(case: str, tmp_path: Path) -> None:
    name, make, words = BAD[case]
    path = tmp_path / name
    make(path)
    with pytest.raises(ModelError) as refused:
        load_model("csinet-cr64", str(path))
    assert str(path) in refused.value.what
    assert words in str(refused.value)
    assert refused.value.fix
    assert set(os.listdir(tmp_path)) <= {name}


@pytest.mark.parametrize(
    "config", ['{"name": "csinet"}', '{"cr": 1e999}', '{"cr": [4]}', '{"cr": {}}', '{"self": 1}']
)
def test_a_hostile_configuration_is_refused(tmp_path: Path, config: str) -> None:
    write_weights(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, {"model": "csinet", "config": config})
    with pytest.raises(ModelError, match="cannot be configured"):
        load_model(str(tmp_path / "a.safetensors"))
