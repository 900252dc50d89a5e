"""Signatures: who vouches for a bundle. Made and checked by OpenSSH's ``ssh-keygen -Y`` with ordinary SSH keys.

The signature lies beside ``manifest.json`` and is one over its bytes; the manifest has the sha256 of every
other file. Who may sign is written in an *allowed-signers file*, a line each: ``NAME ssh-ed25519 AAAA…``
(see "ALLOWED SIGNERS" in ``man ssh-keygen``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgecsi import disk
from edgecsi.bundle.manifest import MANIFEST, MAX_BYTES, SIGNATURE, parse_manifest
from edgecsi.bundle.read import Bundle
from edgecsi.errors import BundleError, InputError, ToolchainError

NAMESPACE = "edgecsi-bundle"
"""Keeps a signature that a key made for another purpose from counting as one for a bundle."""
MAX_SIGNATURE = 64 << 10
_SECONDS = 60  # ssh-keygen may wait for an agent or for a key that has to be touched


def default_allowed_signers() -> Path:
    """``~/.config/edgecsi/allowed_signers``: taken where it exists and no other file is named."""
    return disk.own_folder(".config", "XDG_CONFIG_HOME") / "allowed_signers"


def sign(bundle: Bundle, key: str | Path) -> Path:
    """Sign a bundle, replacing the signature it may have.

    Args:
        bundle: a verified bundle.
        key: an SSH private key, or the public half of one that the SSH agent holds.

    Returns:
        The signature's file, beside the manifest.

    Raises:
        InputError: the key cannot be used.
        BundleError: the bundle changed meanwhile. Others as for :func:`edgecsi.disk.whole`.
    """
    text = sign_bytes(manifest_bytes(bundle), key)
    path = bundle.path / SIGNATURE
    disk.write(path, text)
    return path


def sign_bytes(data: bytes, key: str | Path) -> bytes:
    """The armoured signature of ``data``; also tells, before a long build, whether a key can be used.

    Raises:
        InputError: the key is missing, none, locked, or not in the agent.
    """
    if not Path(key).is_file():
        raise InputError(
            f"{key}: no such key",
            "bundles are signed with an SSH key",
            "make one with: ssh-keygen -t ed25519",
        )
    done = _ssh_keygen(["sign", "-f", str(key), "-n", NAMESPACE], data)
    if done.returncode != 0:
        raise InputError(
            f"{key} cannot sign",
            _last_line(done),
            "give a private SSH key without a passphrase, or load it (ssh-add) and give its .pub file",
        )
    return done.stdout


def verify(bundle: Bundle, allowed_signers: str | Path) -> str:
    """Check a bundle's signature.

    Args:
        bundle: a verified bundle.
        allowed_signers: who may sign.

    Returns:
        The signer's name in that file.

    Raises:
        BundleError: the bundle is not signed, or not by anybody in the file, or changed after it was signed.
        InputError: there is no such file.
    """
    if not Path(allowed_signers).is_file():
        raise InputError(
            f"{allowed_signers}: no such file",
            "it lists who may sign bundles",
            'write one: echo "$USER $(cat ~/.ssh/id_ed25519.pub)" > allowed_signers',
        )
    data = manifest_bytes(bundle)
    text = read_signature(bundle)
    if text is None:
        raise BundleError(
            f"{bundle.path} is not signed", f"it has no {SIGNATURE}", "sign it: edgecsi sign BUNDLE --key KEY"
        )
    with disk.scratch() as folder:
        signature = folder / SIGNATURE
        signature.write_bytes(text)
        files = ["-f", str(allowed_signers), "-s", str(signature)]
        found = _ssh_keygen(["find-principals", *files], b"")
        names = found.stdout.decode("utf-8", "replace").splitlines()
        if found.returncode != 0 or not names:
            raise BundleError(
                f"{bundle.path} is signed by nobody in {allowed_signers}",
                _last_line(found),
                "have it signed by somebody listed there, or add the signer's public key to the file",
            )
        checked = _ssh_keygen(["verify", *files, "-I", names[0], "-n", NAMESPACE], data)
    if checked.returncode != 0:
        raise BundleError(
            f"the signature of {bundle.path} does not fit it",
            f"its key is {names[0]}'s, but it was made for another bundle or purpose",
            "build it again or sign it again; do not use it",
        )
    return names[0]


def read_signature(bundle: Bundle) -> bytes | None:
    """The signature as it lies in the bundle, of whatever worth; ``None`` if there is none.

    Raises:
        BundleError: it is no plain file, or too large to be one.
    """
    path = bundle.path / SIGNATURE
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as stream:
            text = stream.read(MAX_SIGNATURE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{path} cannot be read", str(error.strerror), "sign the bundle again") from None
    if len(text) > MAX_SIGNATURE:
        raise BundleError(f"{path} is no signature", "it is too large", "sign the bundle again")
    return text


def manifest_bytes(bundle: Bundle) -> bytes:
    """The manifest's bytes, as long as they are those that were verified."""
    path = bundle.path / MANIFEST
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read", str(error.strerror), "build the bundle again") from None
    if parse_manifest(data, str(path)).digest != bundle.manifest.digest:
        raise BundleError(f"{path} was replaced meanwhile", "another build wrote there", "try again")
    return data


def _ssh_keygen(arguments: Sequence[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    # A passphrase is asked for at a terminal only: in a session of its own there is none.
    try:
        return subprocess.run(
            ["ssh-keygen", "-Y", *arguments],
            input=data,
            capture_output=True,
            timeout=None if _at_terminal() else _SECONDS,
            start_new_session=not _at_terminal(),
            env=os.environ | {"LC_ALL": "C"} | ({} if _at_terminal() else {"SSH_ASKPASS_REQUIRE": "never"}),
        )
    except FileNotFoundError:
        raise ToolchainError(
            "ssh-keygen is missing", "it makes and checks signatures", "apt-get install openssh-client"
        ) from None
    except subprocess.TimeoutExpired:
        raise ToolchainError(
            "ssh-keygen does not end",
            f"it was given up after {_SECONDS} s",
            "see whether it waits for the SSH agent (ssh-add -l) or for a security key to be touched",
        ) from None


def _at_terminal() -> bool:
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def _last_line(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
    return "".join(c if c.isprintable() else "?" for c in lines[-1][:300]) if lines else "ssh-keygen failed"
