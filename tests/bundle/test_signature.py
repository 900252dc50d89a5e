"""Signatures: only what somebody in the list signed, as it was signed, counts."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecsi.bundle import Bundle, embedded_json, load, parse_manifest, read_bundle, write_bundle
from edgecsi.bundle.manifest import SIGNATURE
from edgecsi.bundle.signature import sign, sign_bytes, verify
from edgecsi.cli import main
from edgecsi.errors import BundleError, InputError
from tests import _tiny

pytestmark = pytest.mark.needs("ssh-keygen")


@dataclasses.dataclass
class Keys:
    """Alice is in the list, Mallory is not."""

    alice: Path
    mallory: Path
    allowed: Path


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("alice", "mallory"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True
        )
    allowed = folder / "allowed_signers"
    allowed.write_text(f"alice@example.com {(folder / 'alice.pub').read_text()}")
    return Keys(folder / "alice", folder / "mallory", allowed)


def test_a_signature_names_its_signer_everywhere(
    bundle: Bundle, keys: Keys, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sign", str(bundle.path), "--key", str(keys.alice)]) == 0
    assert verify(read_bundle(bundle.path), keys.allowed) == "alice@example.com"
    assert load(bundle.path, allowed_signers=keys.allowed).manifest == bundle.manifest
    capsys.readouterr()
    assert main(["inspect", str(bundle.path), "--allowed-signers", str(keys.allowed)]) == 0
    assert "by alice@example.com" in capsys.readouterr().out


def test_what_is_not_signed_by_a_listed_key_is_refused(bundle: Bundle, keys: Keys) -> None:
    with pytest.raises(BundleError, match=r"is not signed\n.*\nsign it"):
        load(bundle.path, allowed_signers=keys.allowed)
    sign(bundle, keys.mallory)
    with pytest.raises(BundleError, match="signed by nobody in"):
        load(bundle.path, allowed_signers=keys.allowed)
    assert main(["inspect", str(bundle.path), "--allowed-signers", str(keys.allowed)]) == 3


def test_a_signature_counts_for_its_own_bundle_and_purpose_only(
    bundle: Bundle, keys: Keys, tmp_path: Path
) -> None:
    sign(bundle, keys.alice)
    other = write_bundle(
        tmp_path / "other", dataclasses.replace(_tiny.manifest(), build_number=7),
        _tiny.files(bundle.library, _tiny.manifest()),
    )  # fmt: skip
    shutil.copy(bundle.path / SIGNATURE, other.path)
    with pytest.raises(BundleError, match="does not fit it"):
        verify(other, keys.allowed)
    (bundle.path / SIGNATURE).unlink()
    manifest = bundle.path / "manifest.json"
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-f", keys.alice, "-n", "file", manifest], check=True)
    with pytest.raises(BundleError, match="does not fit it"):
        verify(bundle, keys.allowed)


@pytest.mark.parametrize("break_it", ["bit", "cut", "empty", "huge", "link"])
def test_a_broken_signature_is_refused(bundle: Bundle, keys: Keys, break_it: str) -> None:
    path = sign(bundle, keys.alice)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    changed = {"bit": bytes(data), "cut": bytes(data[:90]), "empty": b"", "huge": b"x" * (1 << 20)}
    if break_it == "link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    else:
        path.write_bytes(changed[break_it])
    with pytest.raises(BundleError):
        verify(bundle, keys.allowed)


def test_a_key_that_cannot_sign_is_named(bundle: Bundle, keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such key"):
        sign(bundle, tmp_path / "nowhere")
    (tmp_path / "none").write_text("no key\n")
    (tmp_path / "none").chmod(0o600)
    with pytest.raises(InputError, match="cannot sign"):
        sign(bundle, tmp_path / "none")
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", locked], check=True)
    with pytest.raises(InputError, match="ssh-add"):
        sign(bundle, locked)  # and asks nobody
    assert not (bundle.path / SIGNATURE).exists()


def test_a_signed_bundle_is_written_and_replaced_whole(bundle: Bundle, keys: Keys, tmp_path: Path) -> None:
    files = _tiny.files(bundle.library, _tiny.manifest())
    out = tmp_path / "signed"
    for _ in range(2):  # the second replaces the first, signature and all
        signed = write_bundle(out, _tiny.manifest(), files, lambda data: sign_bytes(data, keys.alice))
        assert verify(signed, keys.allowed) == "alice@example.com"


def test_a_build_number_is_signed_but_does_not_change_the_library(
    bundle: Bundle, libraries: Callable[..., Path], tmp_path: Path
) -> None:
    about = dataclasses.replace(_tiny.manifest(), build_number=12)
    assert embedded_json(about) == embedded_json(_tiny.manifest())
    numbered = _tiny.make_bundle(tmp_path / "numbered", libraries(), about)
    assert read_bundle(numbered.path).manifest.build_number == 12
    assert numbered.manifest.digest != bundle.manifest.digest
    assert b"build_number" not in (bundle.path / "manifest.json").read_bytes()

    _tiny.reseal(numbered.path, lambda tree: tree.update(build_number=None))  # a second spelling of none
    with pytest.raises(BundleError, match="build_number is not valid"):
        parse_manifest((numbered.path / "manifest.json").read_bytes(), "m")


def test_the_key_is_tried_before_the_long_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["build", "csinet-cr64", "--random-weights", "--target", "host", "-o", str(out)]
    assert main([*arguments, "--sign", str(tmp_path / "nowhere")]) == 3
    assert "no such key" in capsys.readouterr().err
    assert not out.exists()


def test_json_says_who_signed(bundle: Bundle, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    sign(bundle, keys.alice)
    arguments = ["inspect", str(bundle.path), "--json", "-", "--allowed-signers", str(keys.allowed)]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["signature"].startswith("by alice@example.com")
