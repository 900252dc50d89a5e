"""Reading a bundle that may be broken or a stranger's. Nothing is loaded, nothing is executed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from edgecsi.bundle.elf import check_library
from edgecsi.bundle.manifest import MANIFEST, MAX_BYTES, Entry, FileInfo, Manifest, parse_manifest
from edgecsi.errors import BundleError
from edgecsi.names import split_batch, suggestion

_AGAIN = "build or copy the bundle again"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was found to be what its manifest says."""

    path: Path
    manifest: Manifest

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.path / self.manifest.library

    def entry(self, name: str) -> Entry:
        """The entry of this name.

        Raises:
            BundleError: there is none.
        """
        try:
            return self.manifest.entries[name]
        except KeyError:
            raise BundleError(
                f"{self.path} has no entry {name!r}",
                f"it has {', '.join(sorted(self.manifest.entries))}",
                suggestion(name, self.manifest.entries, "choose one of them"),
            ) from None

    def chosen(self, entry: str | None) -> str:
        """The entry to use if none was named: ``full``, or the only one there is.

        Raises:
            BundleError: the named one does not exist, or there are several and none is ``full``.
        """
        if entry is None:
            single = [name for name in self.manifest.entries if split_batch(name)[1] == 1]
            entry = "full" if "full" in single or len(single) != 1 else single[0]
        self.entry(entry)
        return entry

    def batch_entries(self, entry: str) -> dict[int, str]:
        """The functions that compute an entry, by the samples each takes at once, largest first: for example
        ``{64: "decoder_b64", 8: "decoder_b8", 1: "decoder"}``.

        Raises:
            BundleError: the bundle has no such entry.
        """
        sizes = {(self.entry(entry).inputs[0].shape or (1,))[0]: entry}
        for name, described in self.manifest.entries.items():
            source, batch = split_batch(name)
            if batch > 1 and source == entry and described.inputs[0].shape:
                sizes[described.inputs[0].shape[0]] = name
        return dict(sorted(sizes.items(), reverse=True))


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle's manifest and verify every file against it, without loading the library.

    Any single changed byte is found: in the manifest by its digest, in a file by its sha256. Files that the
    manifest does not list are ignored.

    Args:
        path: the bundle's folder.

    Raises:
        BundleError: no bundle; a broken, changed or missing file; a symbolic link; a library for another
            processor than the manifest says, or one that needs more than libc and libm.
    """
    folder = Path(path).resolve()
    while True:
        handle = _open_folder(folder)
        try:
            return Bundle(folder, _read(handle, folder))
        except BundleError:
            if _still_there(handle, folder):
                raise
            # A build swapped it, and the old one is being removed under our hands: read the new one.
        finally:
            os.close(handle)


def _open_folder(folder: Path) -> int:
    """A handle all files are opened relative to, so that a build that swaps the folder cannot mix two."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        if MANIFEST in os.listdir(handle):
            return handle
        os.close(handle)
        reason = f"it has no {MANIFEST}"
    except OSError as error:
        reason = str(error.strerror)
    raise BundleError(f"{folder} is no bundle", reason, "give the folder that edgecsi build wrote (-o)")


def _still_there(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except OSError:
        return True


def _read(handle: int, folder: Path) -> Manifest:
    with _open(handle, folder, MANIFEST) as stream:
        manifest = parse_manifest(stream.read(MAX_BYTES + 1), str(folder / MANIFEST))
    for name, info in sorted(manifest.files.items()):
        with _open(handle, folder, name) as stream:
            _verify(stream, folder / name, info)
            if name == manifest.library:
                check_library(stream, folder / name, manifest)
    return manifest


def _verify(stream: BufferedReader, path: Path, info: FileInfo) -> None:
    size = os.fstat(stream.fileno()).st_size
    if size != info.bytes:
        raise BundleError(f"{path} was changed", f"{size} bytes instead of {info.bytes}", _AGAIN)
    if hashlib.file_digest(stream, "sha256").hexdigest() != info.sha256:
        raise BundleError(f"{path} was changed", "its sha256 is not the manifest's", _AGAIN)


def _open(folder_handle: int, folder: Path, name: str) -> BufferedReader:
    """Open a regular file of the bundle; no symbolic link anywhere on the way, no device, no pipe."""
    *folders, last = name.split("/")
    opened: list[int] = []
    try:
        at = folder_handle
        for part in folders:
            at = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            opened.append(at)
        handle = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    except OSError as error:
        reason = (
            "it is a symbolic link" if error.errno in (errno.ELOOP, errno.ENOTDIR) else str(error.strerror)
        )
        raise BundleError(f"{folder / name} cannot be read", reason, _AGAIN) from None
    finally:
        for number in opened:
            os.close(number)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BundleError(f"{folder / name} cannot be read", "it is not a regular file", _AGAIN)
    return os.fdopen(handle, "rb")
