"""Writing a bundle: all of it or nothing.

The new folder is written beside the old one, flushed to disk, and swapped with it in one step, so that
whoever looks (or pulls the plug) at any moment finds either the previous bundle or the new one, whole.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from edgecsi import disk
from edgecsi.bundle.manifest import (
    MANIFEST,
    MAX_BYTES,
    SIGNATURE,
    FileInfo,
    Manifest,
    parse_manifest,
    parse_tree,
    seal,
)
from edgecsi.bundle.read import Bundle
from edgecsi.errors import BundleError

_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
# What building and running the examples leaves behind; it may go when the bundle is replaced.
_LEFTOVERS = re.compile(r"example/(main|build/.*|__pycache__/.*)")


def write_bundle(
    out_dir: str | Path,
    manifest: Manifest,
    files: Mapping[str, bytes | Path],
    signer: Callable[[bytes], bytes] | None = None,
) -> Bundle:
    """Write a bundle, replacing the one that may be there.

    Args:
        out_dir: the bundle's folder: missing, empty, or an older bundle; anything else is left alone.
        manifest: complete but for ``files`` and ``digest``, which are filled in here.
        files: every file but the manifest, by its name inside the bundle: contents, or a file to copy.
        signer: makes the signature of the manifest's bytes; without one the bundle is not signed.

    Returns:
        The bundle as it now stands in ``out_dir``.

    Raises:
        BundleError: ``out_dir`` holds something that is not a bundle.
        InputError, ToolchainError: the disk refused, see :func:`edgecsi.disk.refusal`; the previous bundle is
            untouched.
    """
    out = Path(os.path.abspath(out_dir))
    refuse_to_replace(out)
    fresh = out.parent / f"{disk.PREFIX}{secrets.token_hex(8)}{disk.SUFFIX}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        disk.sweep(out.parent)
        fresh.mkdir()
        with disk.held(
            fresh
        ):  # removed at the end: before the swap what we did not finish, then the old bundle
            infos = {name: _write(fresh / name, content) for name, content in sorted(files.items())}
            sealed, data = seal(manifest, infos)
            _write(fresh / MANIFEST, data)
            if signer is not None:
                _write(fresh / SIGNATURE, signer(data))
            for folder in {fresh, *(path.parent for path in fresh.rglob("*"))}:
                _sync(folder)
            _put_in_place(fresh, out)
            _sync(out.parent)
    except OSError as error:
        fix = "free some space or choose another folder with -o; a bundle that was there is untouched"
        raise disk.refusal(error, out, fix) from error
    return Bundle(out, sealed)


def refuse_to_replace(out: Path) -> None:
    """Raise unless ``out`` is missing, an empty folder, or a bundle without anybody else's files.

    Long builds call this first, so that a mistaken ``-o`` costs no time.

    Raises:
        BundleError: replacing ``out`` would destroy something that edgecsi did not write.
    """
    fix = "choose another folder with -o, or move those files away yourself"
    try:
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise BundleError(f"{out} is not a folder", "a bundle is a folder, and no link to one", fix)
        present = sorted(
            path.relative_to(out).as_posix()
            for path in out.rglob("*")
            if path.is_symlink() or not path.is_dir()
        )
    except OSError as error:
        raise BundleError(f"{out} cannot be read", str(error.strerror or error), fix) from error
    if not present:
        return
    listed = _listed_files(out)
    if listed is None:
        raise BundleError(f"{out} is not empty and not a bundle", "edgecsi replaces bundles only", fix)
    if foreign := [name for name in present if name not in listed and not _LEFTOVERS.fullmatch(name)]:
        shown = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise BundleError(
            f"{out} holds files that are not the bundle's: {shown}", "replacing it would lose them", fix
        )


def what_is_in(out: Path) -> tuple[str, str] | None:
    """Name and target of the bundle in ``out``, which a build may be about to replace; ``None``: none is there."""
    try:
        with (out / MANIFEST).open("rb") as stream:
            manifest = parse_manifest(stream.read(MAX_BYTES + 1), str(out / MANIFEST))
    except (OSError, BundleError):
        return None
    return manifest.name, manifest.target.id


def _listed_files(out: Path) -> set[str] | None:
    """The names a bundle's manifest lists, whether or not the bundle is still sound; ``None``: no bundle."""
    try:
        with (out / MANIFEST).open("rb") as stream:
            tree = parse_tree(stream.read(MAX_BYTES + 1), str(out / MANIFEST))
    except (OSError, BundleError):
        return None
    files = tree.get("files")
    return {MANIFEST, SIGNATURE, *files} if "schema" in tree and isinstance(files, dict) else None


def _write(path: Path, content: bytes | Path) -> FileInfo:
    """Write one file through to the disk and say what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as target:
        if isinstance(content, Path):
            with content.open("rb") as source:
                while block := source.read(1 << 20):
                    target.write(block)
                    digest.update(block)
                    size += len(block)
        else:
            target.write(content)
            digest.update(content)
            size = len(content)
        target.flush()
        os.fsync(target.fileno())
    return FileInfo(digest.hexdigest(), size)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_in_place(fresh: Path, out: Path) -> None:
    """Make ``fresh`` be ``out``; whatever was at ``out`` is at ``fresh`` afterwards."""
    while True:
        try:
            return _rename(fresh, out, _RENAME_EXCHANGE if out.exists() else _RENAME_NOREPLACE)
        except FileNotFoundError:
            if not fresh.exists():
                raise
        except FileExistsError:
            pass  # another build finished between our look and our rename: look again
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            return _swap_in_two_steps(fresh, out)


def _rename(source: Path, target: Path, flags: int) -> None:
    """renameat2(2), which Python does not offer."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, "renameat2 is missing")
    if (
        libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags))
        != 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def _swap_in_two_steps(fresh: Path, out: Path) -> None:
    """Without an exchange (some network file systems): old away, new in, old back if that fails."""
    aside = fresh.with_suffix(".old")
    try:
        if out.exists():
            os.rename(out, aside)
        os.rename(fresh, out)
    finally:
        if aside.exists() and not out.exists():
            os.rename(aside, out)
    if aside.exists():
        os.rename(aside, fresh)
