"""What lies on a device: files under the sha256 of their content, in one folder of the user.

A file is copied once and verified there. It is never written again under its name, so nothing that a process may
have mapped changes under it.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from edgecsi.device import board as boards
from edgecsi.device import toolchain
from edgecsi.device.board import Board
from edgecsi.device.transport import Connection
from edgecsi.errors import DeviceError

# What broken connections left of copies goes before the next one; others may be copying right now.
_LOOK = """mkdir -p "$2" && { [ -e "$1" ] || find "$2" -name '*.*' -mmin +60 -exec rm -f {} +; }
sha256sum <"$1" 2>/dev/null | cut -c1-64"""
_KEEP = """if [ "$(sha256sum <"$2" | cut -c1-64)" = "$3" ]; then mv -f "$2" "$1" && exit
else echo "it did not arrive whole: its sha256 is another there" >&2; fi
rm -f "$2"; exit 1"""


def keep(connection: Connection, folder: str, source: Path | bytes, *, mode: int = 0o644) -> str:
    """Have a file on the device.

    Args:
        connection: the way there.
        folder: where our files go, absolute.
        source: the file, or its content.
        mode: its permissions.

    Returns:
        Its path there: ``folder/files/SHA256``.

    Raises:
        DeviceError: it cannot be written, or arrived changed.
    """
    sha256 = _sha256(source)
    path = f"{folder}/files/{sha256}"
    if connection.run(["sh", "-c", _LOOK, "look", path, f"{folder}/files"]).text == sha256:
        return path
    arriving = f"{path}.{secrets.token_hex(4)}"
    connection.push(source, arriving, mode=mode)
    done = connection.run(["sh", "-c", _KEEP, "keep", path, arriving, sha256])
    if done.code:
        raise DeviceError(
            f"{path} could not be copied to {connection.name}",
            done.said,
            "try again; if it happens again, its disk or memory is full or broken",
        )
    return path


def prepare(connection: Connection, folder: str) -> tuple[Board, str]:
    """Make a device ready to run bundles: it needs our runner, some 20 kB.

    Args:
        connection: the way there.
        folder: where our files go.

    Returns:
        What the device is, and the path of the runner there.

    Raises:
        DeviceError: there is no way to it, or it cannot run bundles; the message says what to do.
        ToolchainError: the runner cannot be compiled here.
    """
    board = boards.probe(connection, folder)
    board.check()
    runner = keep(connection, board.folder, toolchain.remote_runner(board.arch), mode=0o755)
    done = connection.run([runner, "info"])
    if done.code:
        raise DeviceError(
            f"the runner does not start on {connection.name}", done.said, "set the device up again"
        )
    return board.with_cpu(done.text), runner


def _sha256(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_STATUS = """cd "$1" 2>/dev/null || exit 0
du -sk files rpc bundles 2>/dev/null; exit 0"""  # at once: what is linked twice counts once
_CLEAN = """cd "$1" 2>/dev/null || exit 0
shift; rm -rf -- "$@" && cd .. && rmdir "$OLDPWD" 2>/dev/null; exit 0"""


def held(connection: Connection, folder: str) -> dict[str, int]:
    """What lies in our folder there: bytes on its disk of ``files`` (runner and libraries), ``rpc`` and
    ``bundles`` (what was deployed)."""
    lines = connection.run(["sh", "-c", _STATUS, "status", folder]).text.splitlines()
    return {part: 1024 * int(size) for size, part in (line.split() for line in lines)}


def clean(connection: Connection, folder: str, *, bundles: bool = False) -> dict[str, int]:
    """Remove what :func:`keep` and ``device setup`` put there; nothing else in the folder is touched.

    Args:
        connection: the way there.
        folder: our folder.
        bundles: also what was deployed.

    Returns:
        What was removed, as :func:`held` has it.

    Raises:
        DeviceError: something could not be removed.
    """
    parts = ["files", "rpc", *(["bundles"] if bundles else [])]
    before = held(connection, folder)
    done = connection.run(["sh", "-c", _CLEAN, "clean", folder, *parts])
    if left := held(connection, folder).keys() & set(parts):
        raise DeviceError(
            f"{', '.join(sorted(left))} in {folder} cannot be removed on {connection.name}", done.said,
            "see who owns these files there",
        )  # fmt: skip
    return {part: size for part, size in before.items() if part in parts}
