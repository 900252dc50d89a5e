"""Deploying over a real ``sshd``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecsi.bundle import Bundle
from edgecsi.cli import main
from edgecsi.deploy import ROOT, deploy, destination, rollback, status
from tests._sshd import Sshd
from tests._sshd import sshd as sshd
from tests.deploy.conftest import active

pytestmark = pytest.mark.needs("sshd")


def test_deploy_status_and_rollback_from_end_to_end(
    bundles: list[Bundle], sshd: Sshd, capsys: pytest.CaptureFixture[str]
) -> None:
    for bundle in bundles[:2]:
        assert main(["deploy", str(bundle.path), sshd.spec]) == 0
    assert "activated" in capsys.readouterr().out
    assert active(sshd.home) == bundles[1].manifest.digest
    there = destination(sshd.spec)
    (found,) = status(there.connection, there.root)
    assert (found.name, found.build_number, found.deploying) == ("tiny-net", 2, "")
    assert found.current is not None
    assert found.current.digest == bundles[1].manifest.digest
    assert not found.current.drift

    back = rollback(there.connection, "tiny-net")
    assert (back.digest, back.previous) == (bundles[0].manifest.digest, bundles[1].manifest.digest)
    assert active(sshd.home) == bundles[0].manifest.digest
    there.connection.close()


def test_the_second_deployment_sends_nothing(
    bundles: list[Bundle], sshd: Sshd, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", str(bundles[0].path), sshd.spec]) == 0
    capsys.readouterr()
    assert main(["deploy", str(bundles[0].path), sshd.spec, "--json", "-"]) == 0
    (done,) = json.loads(capsys.readouterr().out)
    assert (done["action"], done["sent_bytes"]) == ("already active", 0)


def test_a_changed_byte_on_the_device_is_seen_and_mended(bundles: list[Bundle], sshd: Sshd) -> None:
    there = destination(sshd.spec)
    for bundle in bundles[:2]:
        deploy(bundle, there.connection)
    library = sshd.home / ROOT / "tiny-net" / "current" / "libtiny-net.so"
    data = bytearray(library.read_bytes())
    data[-1] ^= 1
    library.write_bytes(data)
    (found,) = status(there.connection, there.root)
    assert found.current is not None
    assert found.current.drift == ("libtiny-net.so was changed",)
    deploy(bundles[1], there.connection)
    assert active(sshd.home) == bundles[1].manifest.digest
    assert active(sshd.home, "previous") == bundles[0].manifest.digest
    there.connection.close()


@pytest.mark.parametrize("folder", ["with space", "quo'te\"s", "semi;touch x", "$HOME", "-rf", "ü*?"])
def test_any_folder_name_is_only_a_name(bundles: list[Bundle], sshd: Sshd, folder: str) -> None:
    root = f"{sshd.folder}/{folder}"
    assert main(["deploy", str(bundles[0].path), sshd.spec, "--root", root]) == 0
    assert (Path(root) / "tiny-net" / "current" / "manifest.json").is_file()
    assert not (sshd.home / "x").exists()
