"""Deploying to one device: what ends up there, and what does not travel."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecsi.bundle import Bundle
from edgecsi.deploy import ROOT, Here, Options, deploy, rollback, status
from tests.deploy.conftest import active, place
from tests.deploy.simulated import Simulated


def test_the_first_deployment_makes_everything(bundles: list[Bundle], tmp_path: Path) -> None:
    done = deploy(bundles[0], Here(tmp_path))
    assert (done.action, done.previous, done.digest) == ("activated", None, bundles[0].manifest.digest)
    assert active(tmp_path) == bundles[0].manifest.digest
    assert active(tmp_path, "previous") == ""
    assert not list((place(tmp_path) / "incoming").iterdir())
    assert not (place(tmp_path) / "lock").is_symlink()


def test_the_same_again_sends_nothing(bundles: list[Bundle], device: Callable[[], Path]) -> None:
    home = device()
    before = (place(home) / "now").readlink()
    done = deploy(bundles[0], Simulated(home))
    assert (done.action, done.sent_files, done.sent_bytes) == ("already active", 0, 0)
    assert (place(home) / "now").readlink() == before


def test_only_what_changed_is_sent(bundles: list[Bundle], device: Callable[[], Path]) -> None:
    home = device()
    done = deploy(bundles[1], Simulated(home))
    assert done.sent_files == 2  # library and manifest; header and golden values are there
    assert active(home) == bundles[1].manifest.digest
    assert active(home, "previous") == bundles[0].manifest.digest


def test_a_dry_run_changes_nothing(bundles: list[Bundle], device: Callable[[], Path], tmp_path: Path) -> None:
    home = device()
    done = deploy(bundles[1], Simulated(home), Options(dry_run=True))
    assert (done.action, done.sent_files) == ("would be activated", 2)
    assert active(home) == bundles[0].manifest.digest
    bare = tmp_path / "bare"
    bare.mkdir()
    deploy(bundles[1], Here(bare), Options(dry_run=True))
    assert not (bare / ROOT).exists()


def test_old_releases_go_and_the_previous_one_stays(
    bundles: list[Bundle], device: Callable[[], Path]
) -> None:
    home = device()
    for bundle in (bundles[1], bundles[2]):
        deploy(bundle, Simulated(home), Options(keep=2))
    releases = {path.name for path in (place(home) / "releases").iterdir()}
    assert releases == {bundles[1].manifest.digest, bundles[2].manifest.digest}
    assert len(list((place(home) / "states").iterdir())) == 1


@pytest.mark.needs("busybox", "getconf")
def test_busybox_is_enough_there(bundles: list[Bundle], tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    busybox = shutil.which("busybox")
    assert busybox is not None
    for name in subprocess.run(
        [busybox, "--list"], capture_output=True, text=True, check=True
    ).stdout.split():
        (tools / name).symlink_to(busybox)
    (tools / "getconf").symlink_to(str(shutil.which("getconf")))  # comes with glibc
    home = tmp_path / "home"
    home.mkdir()
    for bundle in bundles:
        deploy(bundle, Here(home, {"PATH": str(tools)}), Options(keep=2))
        assert active(home) == bundle.manifest.digest
    rollback(Here(home, {"PATH": str(tools)}), "tiny-net")
    assert active(home) == bundles[1].manifest.digest
    (found,) = status(Here(home, {"PATH": str(tools)}), ROOT)
    assert found.current is not None
    assert not found.current.drift
