"""What a file really is, whatever its name says, so that an error can name it."""

from __future__ import annotations

import zipfile
from pathlib import Path

_HDF5 = b"\x89HDF\r\n\x1a\n"
_STARTS = (
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (_HDF5, "an HDF5 file (Keras .h5, or MATLAB 7.3 without its header)"),
    (b"MATLAB 5.0", "a MATLAB file (.mat)"),
    (b"MATLAB 7.3", "a MATLAB 7.3 file (.mat)"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7-zip archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ", "an xz archive: unpack it first"),
    (b"\x7fELF", "a program or library"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a pointer of Git LFS: run `git lfs pull`"),
)


def describe(path: Path) -> str | None:
    """What a file is, in words for an error: "a web page (HTML)"; None if it cannot be told.

    Only the beginning is read, and the list of names of a zip archive.
    """
    try:
        with path.open("rb") as file:
            start = file.read(1024)
        if not start:
            return "an empty file"
        for mark, kind in _STARTS:
            if start.startswith(mark):
                return kind
        if start.startswith(b"PK"):
            return _zip(path)
        if start[4:8] == b"TFL3":
            return "a TensorFlow Lite model"
        if start[:1] == b"\x80" and start[1] <= 5:
            return "a Python pickle"
    except (OSError, IndexError):
        return None
    return _text(start)


def why_unreadable(path: Path, error: Exception) -> str:
    """Why a file of data cannot be read: what it really is, if its name says otherwise, or what its reader said.

    numpy's own words about objects advise to load them; loading one can run code that it brings.
    """
    kind = describe(path)
    if kind is not None and path.suffix.lower() not in kind:
        return f"it looks like {kind}"
    said = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    if any(words in said for words in ("allow_pickle", "Python objects", "magic string")):
        return "it holds Python objects, not plain numbers" if kind else "it is of no kind that is known"
    return said or type(error).__name__


def missing(path: Path) -> str:
    """What is wrong with a path that should be a file."""
    if path.is_dir():
        return f"{path} is a folder"
    return f"{path} is no file" if path.exists() else f"{path}: no such file"


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return "a zip archive that was cut short: copy or download it again"
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return "an exported program (torch.export.save)"
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return "a TorchScript program (torch.jit.save)"
    if any(name.endswith("data.pkl") for name in names):
        return "a file of torch.save"
    if names and all(name.endswith(".npy") for name in names):
        return "a set of NumPy arrays (.npz)"
    return "a zip archive: unpack it first"


def _text(start: bytes) -> str | None:
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page (HTML), perhaps of a download that needs a login"
    if head.startswith((b"{", b"[")):
        return "a JSON text"
    try:
        start[:-4].decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if b"\0" in start else "a text file"
