"""Signatures × moments: whatever is wrong with a bundle, it is not activated, and the old release keeps running."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecsi.bundle import Bundle, load, read_bundle
from edgecsi.bundle.manifest import SIGNATURE
from edgecsi.bundle.signature import sign
from edgecsi.cli import main
from edgecsi.deploy import deploy, rollback, status
from edgecsi.errors import BundleError, EdgecsiError
from tests.deploy.conftest import active, place
from tests.deploy.faults import count
from tests.deploy.simulated import Simulated

pytestmark = pytest.mark.needs("ssh-keygen")
Device = Callable[[], Path]
FILES = ["libtiny-net.so", "tiny-net.h", "golden.npz", "manifest.json", SIGNATURE]
WRONG = ["none", "other key", "older", *(f"bit in {name}" for name in FILES), "swapped", "swapped manifests"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the keys alice and mallory, and a list in which alice is."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("alice", "mallory"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "allowed_signers").write_text(f"alice@example.com {(folder / 'alice.pub').read_text()}")
    return folder


@pytest.fixture
def good(bundles: list[Bundle], keys: Path, tmp_path: Path) -> Bundle:
    """Build 2, signed by alice."""
    shutil.copytree(bundles[1].path, tmp_path / "good")
    bundle = read_bundle(tmp_path / "good")
    sign(bundle, keys / "alice")
    return bundle


def spoil(folder: Path, wrong: str, bundles: list[Bundle], keys: Path) -> None:
    """Make a good, signed bundle (build 2) bad in one way."""
    older = folder.with_name("older")
    if wrong in ("older", "swapped manifests"):
        shutil.copytree(bundles[0].path, older)
        sign(read_bundle(older), keys / "alice")
    if wrong == "none":
        (folder / SIGNATURE).unlink()
    elif wrong == "other key":
        (folder / SIGNATURE).unlink()
        subprocess.run(
            ["ssh-keygen", "-q", "-Y", "sign", "-f", keys / "mallory", "-n", "edgecsi-bundle", folder / "manifest.json"],
            check=True,
        )  # fmt: skip
    elif wrong == "older":
        shutil.copy(older / SIGNATURE, folder)
    elif wrong == "swapped":
        one, two = folder / "tiny-net.h", folder / "golden.npz"
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
    elif wrong == "swapped manifests":
        for name in ("manifest.json", SIGNATURE):
            shutil.copy(older / name, folder)
    else:
        path = folder / wrong.removeprefix("bit in ")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def _checking(device: Device, keys: Path) -> Path:
    """A device with a list of signers."""
    home = device()
    (home / ".config" / "edgecsi").mkdir(parents=True)
    shutil.copy(keys / "allowed_signers", home / ".config" / "edgecsi")
    return home


@pytest.mark.parametrize("wrong", WRONG)
def test_refused_before_anything_is_copied(
    bundles: list[Bundle],
    device: Device,
    good: Bundle,
    keys: Path,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = device()
    monkeypatch.setenv("HOME", str(home))
    before = sorted(place(home).rglob("*"))
    spoil(good.path, wrong, bundles, keys)
    arguments = ["--require-signature", "--allowed-signers", str(keys / "allowed_signers")]
    assert main(["deploy", str(good.path), "local", *arguments]) == BundleError.exit_code
    assert sorted(place(home).rglob("*")) == before
    assert active(home) == bundles[0].manifest.digest
    count("bad signature or file: before the copy")


@pytest.mark.parametrize("wrong", WRONG)
def test_refused_by_the_device_before_activation(
    bundles: list[Bundle], device: Device, good: Bundle, keys: Path, wrong: str
) -> None:
    """The copy is spoiled on the device, after it was proven there and just before it is activated."""
    home = _checking(device, keys)

    class Tampering(Simulated):
        def run(self, argv, **named):
            if "activate" in argv:
                spoil(place(home) / "releases" / good.manifest.digest, wrong, bundles, keys)
            return super().run(argv, **named)

    with pytest.raises(EdgecsiError, match=r"not activated|nobody it trusts"):
        deploy(good, Tampering(home))
    assert active(home) == bundles[0].manifest.digest
    deploy(good, Simulated(home))  # the next, untampered, works
    assert active(home) == good.manifest.digest
    count("bad signature or file: before activation")


@pytest.mark.parametrize("wrong", WRONG)
def test_refused_when_it_is_loaded(
    bundles: list[Bundle], device: Device, good: Bundle, keys: Path, wrong: str
) -> None:
    home = _checking(device, keys)
    deploy(good, Simulated(home))
    there = place(home) / "current"
    with load(
        there, allowed_signers=keys / "allowed_signers"
    ) as loaded:  # what is spoiled must not be mapped
        assert loaded.manifest.build_number == 2
    spoil(there.resolve(), wrong, bundles, keys)
    with pytest.raises(BundleError):
        load(there, allowed_signers=keys / "allowed_signers")
    (found,) = status(Simulated(home), ".edgecsi/bundles")
    assert found.current is not None
    assert found.current.drift or found.current.untrusted
    with pytest.raises(BundleError, match="nobody it trusts has signed it"):
        rollback(Simulated(home), "tiny-net")  # build 1 was never signed
    deploy(good, Simulated(home)) if wrong != "none" else None
    count("bad signature or file: when loaded")


def test_a_signature_can_follow_later(
    bundles: list[Bundle], device: Device, good: Bundle, keys: Path
) -> None:
    home = device()
    deploy(bundles[1], Simulated(home))  # the same build, not signed
    (home / ".config" / "edgecsi").mkdir(parents=True)
    shutil.copy(keys / "allowed_signers", home / ".config" / "edgecsi")
    done = deploy(good, Simulated(home))
    assert (done.action, done.sent_files) == ("already active", 1)
    assert load(place(home) / "current", allowed_signers=keys / "allowed_signers")
