"""Bundles to deploy: two builds of the same small network, and devices that have the first."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecsi.bundle import Bundle, parse_manifest
from edgecsi.deploy import ROOT, deploy
from tests import _tiny
from tests._tiny import libraries as libraries
from tests.deploy.simulated import Simulated, copy


@pytest.fixture(scope="session")
def bundles(libraries: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Builds 1, 2 and 3 of one product; they differ in the library's bytes as well."""
    folder = tmp_path_factory.mktemp("bundles")
    made = []
    for number in (1, 2, 3):
        library = folder / f"build{number}.so"
        library.write_bytes(libraries().read_bytes() + b"build %d" % number)
        about = dataclasses.replace(_tiny.manifest(), build_number=number)
        made.append(_tiny.make_bundle(folder / f"build{number}", library, about))
    return made


@pytest.fixture(scope="session")
def _template(bundles: list[Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "device"
    deploy(bundles[0], Simulated(folder))
    return folder


@pytest.fixture
def device(_template: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes folders of devices on which build 1 is active."""
    numbers = itertools.count()
    return lambda: copy(_template, tmp_path / f"device{next(numbers)}")


def place(home: Path) -> Path:
    """Where the bundle lies on a device."""
    return home / ROOT / "tiny-net"


def active(home: Path, link: str = "current") -> str:
    """Digest of what a program finds there, every file of which is checked; empty if nothing is."""
    folder = place(home) / link
    if not folder.exists():
        return ""
    manifest = parse_manifest((folder / "manifest.json").read_bytes(), "m")
    for name, info in manifest.files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == info.sha256, name
    return manifest.digest
