"""A disk that really is full, and one that really cannot be written (needs root, to mount them)."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecsi.bundle import Bundle
from edgecsi.deploy import Here, deploy
from edgecsi.errors import DeviceError
from tests.deploy.conftest import active
from tests.deploy.faults import count


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A device whose home is a file system of its own, 1 MB."""
    if os.getuid() != 0:
        pytest.skip("mounting needs root")
    home = tmp_path / "home"
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(home)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode()}")
    try:
        yield home
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_full_disk(bundles: list[Bundle], disk: Path) -> None:
    deploy(bundles[0], Here(disk))
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while stream.write(bytes(4096)):
            pass
    with pytest.raises(DeviceError, match=r"is full"):
        deploy(bundles[1], Here(disk))
    assert active(disk) == bundles[0].manifest.digest
    filler.unlink()
    deploy(bundles[1], Here(disk))
    assert active(disk) == bundles[1].manifest.digest
    count("a disk that is full")


def test_a_disk_that_became_read_only(bundles: list[Bundle], disk: Path) -> None:
    deploy(bundles[0], Here(disk))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(DeviceError) as caught:
        deploy(bundles[1], Here(disk))
    assert all((caught.value.what, caught.value.why, caught.value.fix))
    assert active(disk) == bundles[0].manifest.digest
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    deploy(bundles[1], Here(disk))
    assert active(disk) == bundles[1].manifest.digest
    count("a disk that became read-only")


def test_a_disk_from_which_nothing_runs(bundles: list[Bundle], disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,noexec", str(disk)], check=True)
    with pytest.raises(DeviceError, match=r"noexec|may not run"):
        deploy(bundles[0], Here(disk))
    subprocess.run(["mount", "-o", "remount,exec", str(disk)], check=True)
    deploy(bundles[0], Here(disk))
    assert active(disk) == bundles[0].manifest.digest
    count("a disk that is mounted noexec")
