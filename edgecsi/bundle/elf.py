"""What the library's ELF header must say, checked without loading it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

from edgecsi.bundle.manifest import Manifest
from edgecsi.errors import BundleError

ALLOWED_NEEDED = frozenset({"libc.so.6", "libm.so.6"})
_MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
_REBUILD = "build the bundle again"


def check_library(stream: BinaryIO, path: Path, manifest: Manifest) -> None:
    """Refuse a library (``stream``, called ``path`` in messages) that is not what its manifest says.

    It must be a whole 64-bit little-endian shared object for ``manifest.target.arch``, need nothing but libc
    and libm, carry no search path of its own, and export every entry.

    Raises:
        BundleError: it is not.
    """
    stream.seek(0)
    try:
        _check(stream, path, manifest)
    except BundleError:
        raise
    except Exception as error:
        # pyelftools raises whatever its parser stumbles over; to us it all means the same.
        raise BundleError(
            f"{path} is not a valid ELF file", f"{type(error).__name__}: {error}", _REBUILD
        ) from None


def _check(stream: BinaryIO, path: Path, manifest: Manifest) -> None:
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile

    elf = ELFFile(stream)
    wanted = _MACHINES[manifest.target.arch]
    if elf["e_machine"] != wanted:
        raise BundleError(
            f"{path} is built for another processor",
            f"the manifest says {manifest.target.arch}, the file {elf.get_machine_arch()}",
            _REBUILD,
        )
    if elf.elfclass != 64 or not elf.little_endian or elf["e_type"] != "ET_DYN":
        raise BundleError(
            f"{path} is not a 64-bit little-endian shared library", f"{elf['e_type']}", _REBUILD
        )
    size, dynamic = stream.seek(0, 2), None
    for segment in elf.iter_segments():
        if segment["p_type"] != "PT_NULL" and segment["p_offset"] + segment["p_filesz"] > size:
            raise BundleError(f"{path} is truncated", "a segment ends beyond the end of the file", _REBUILD)
        if isinstance(segment, DynamicSegment):
            dynamic = segment
    if dynamic is None:
        raise BundleError(f"{path} is not a shared library", "it has no dynamic section", _REBUILD)
    for tag in cast("Iterable[Any]", dynamic.iter_tags()):
        kind = tag.entry.d_tag
        if kind == "DT_NEEDED" and tag.needed not in ALLOWED_NEEDED:
            raise BundleError(
                f"{path} needs {tag.needed}",
                "a bundle's library needs libc and libm only",
                "build the bundle again with edgecsi; do not relink it",
            )
        if kind in ("DT_RPATH", "DT_RUNPATH"):
            raise BundleError(f"{path} brings its own library search path ({kind})", "refused", _REBUILD)
    exported = {symbol.name for symbol in dynamic.iter_symbols() if symbol["st_shndx"] != "SHN_UNDEF"}
    wanted_symbols = [f"{manifest.cname}_strerror", f"{manifest.cname}_manifest"]
    for entry in manifest.entries:
        wanted_symbols += [f"{manifest.cname}_{entry}{suffix}" for suffix in ("", "_ws", "_profile")]
    if missing := [name for name in wanted_symbols if name not in exported]:
        raise BundleError(f"{path} lacks {', '.join(missing)}", "the manifest promises them", _REBUILD)
