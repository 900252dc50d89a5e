"""The manifest: one spelling, nothing lost on the way, mistakes named by their path."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from edgecsi.bundle import FileInfo, embedded_json, parse_manifest
from edgecsi.bundle.manifest import canonical, seal, to_json
from edgecsi.errors import BundleError
from tests import _tiny

FILES = {"libtiny-net.so": FileInfo("0" * 64, 1), "tiny-net.h": FileInfo("1" * 64, 2)}


def _bytes(**changes):
    """A manifest with some top-level fields replaced, correctly sealed."""
    tree = to_json(dataclasses.replace(_tiny.manifest(), files=FILES)) | changes
    return _seal(tree)


def _seal(tree):
    import hashlib

    tree.pop("digest", None)
    tree["digest"] = hashlib.sha256(canonical(tree)).hexdigest()
    return canonical(tree)


def test_a_manifest_survives_the_round_trip() -> None:
    sealed, data = seal(_tiny.manifest(), FILES)
    assert parse_manifest(data, "m") == sealed
    assert sealed.entries == _tiny.manifest().entries
    assert sealed.cname == "tiny_net"


def test_the_bytes_are_canonical_and_the_same_every_time() -> None:
    _, data = seal(_tiny.manifest(), FILES)
    assert seal(_tiny.manifest(), dict(reversed(FILES.items())))[1] == data
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()


def test_the_embedded_part_does_not_depend_on_what_comes_after_the_library() -> None:
    before = embedded_json(_tiny.manifest())
    assert embedded_json(seal(_tiny.manifest(), FILES)[0]) == before
    assert not {"check", "files", "digest"} & json.loads(before).keys()


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"name": "../tiny"}, "name"),
        ({"name": "tiny\nnet"}, "name"),
        ({"library": "libother.so"}, "library"),
        ({"entries": {}}, "entries"),
        ({"entries": []}, "entries"),
        ({"check": None}, "check"),
        (
            {"check": {"status": "perhaps", "reason": "", "data": "", "samples": 0, "entries": {}}},
            "check.status",
        ),
        ({"files": {"../evil": {"sha256": "0" * 64, "bytes": 1}}}, "files.../evil"),
        ({"files": {"a/../../evil": {"sha256": "0" * 64, "bytes": 1}}}, "files.a/../../evil"),
        ({"files": {"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "files./etc/passwd"),
        ({"files": {}}, "files"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(changes: Any, path: Any) -> None:
    with pytest.raises(BundleError) as caught:
        parse_manifest(_bytes(**changes), "m")
    assert f"m: {path} is not valid" in caught.value.what


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("target.arch", "mips"),
        ("target.glibc", "2.28\n"),
        ("target.emulate", "cortex-a72 -evil"),
        ("entries.full.workspace", -1),
        ("entries.full.workspace", 2**40),
        ("entries.full.workspace", True),
        ("entries.full.workspace", 1.5),
        ("entries.full.layers", {}),
        ("entries.full.layers.0.density", 1.5),
        ("entries.full.layers.0.knobs", {"tile": [1]}),
        ("entries.full.inputs.0.shape", [0, 8]),
        ("entries.full.inputs.0.shape", [2**31, 8]),
        ("entries.full.inputs.0.shape", [2**20, 2**20]),
        ("entries.full.inputs.0.dtype", "float64"),
        ("entries.full.inputs.0.name", "reconstruction"),
        ("entries.full.inputs", []),
        ("created_with.torch", 2),
    ],
)
def test_numbers_and_types_are_checked_deep_inside(path: Any, value: Any) -> None:
    tree = json.loads(_bytes())
    *parents, last = path.split(".")
    node = tree
    for key in parents:
        node = node[int(key) if isinstance(node, list) else key]
    node[int(last) if isinstance(node, list) else last] = value
    with pytest.raises(BundleError, match=r"not valid\nexpected"):
        parse_manifest(_seal(tree), "m")


@pytest.mark.parametrize("field", sorted(to_json(_tiny.manifest()).keys() - {"digest"}))
def test_a_missing_field_is_named(field: str) -> None:
    tree = json.loads(_bytes())
    del tree[field]
    with pytest.raises(BundleError, match=f"m: {field} is not valid"):
        parse_manifest(_seal(tree), "m")


def test_a_future_schema_asks_for_an_update() -> None:
    with pytest.raises(BundleError, match="update edgecsi"):
        parse_manifest(_bytes(schema=2), "m")


def test_what_no_reader_would_accept_is_not_written() -> None:
    broken = dataclasses.replace(
        _tiny.manifest(), check=dataclasses.replace(_tiny.manifest().check, samples=-1)
    )
    with pytest.raises(BundleError, match=r"check\.samples"):
        seal(broken, FILES)
