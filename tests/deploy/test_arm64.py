"""Deploying to an aarch64 Debian: its own shell and tools, loader and C library (under QEMU)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecsi.cli import main
from edgecsi.deploy import ROOT
from tests import _tiny
from tests._arm64 import arm64
from tests.deploy.conftest import active

pytestmark = pytest.mark.needs("ssh", "sshd", "qemu-aarch64-static")


def test_deploy_status_and_rollback_from_end_to_end(
    libraries: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = []
    for number in (1, 2):
        about = dataclasses.replace(_tiny.manifest("aarch64"), build_number=number)
        built.append(_tiny.make_bundle(tmp_path / str(number), libraries("aarch64"), about))
    with arm64("cortex-a72") as pi:
        for bundle in built:
            assert main(["deploy", str(bundle.path), pi.spec]) == 0
            assert active(pi.home) == bundle.manifest.digest
        assert main(["deploy", str(built[0].path), pi.spec]) == 3  # an older build
        assert main(["device", "status", pi.spec]) == 0
        assert main(["device", "rollback", pi.spec]) == 0
        assert active(pi.home) == built[0].manifest.digest
        here = _tiny.make_bundle(
            tmp_path / "here",
            libraries("x86_64"),
            dataclasses.replace(_tiny.manifest("x86_64"), build_number=3),
        )
        capsys.readouterr()
        assert main(["deploy", str(here.path), pi.spec]) == 5
        assert "is built for x86_64" in capsys.readouterr().err
        assert len(list((pi.home / ROOT / "tiny-net" / "releases").iterdir())) == 2
