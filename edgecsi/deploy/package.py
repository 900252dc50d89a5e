"""Bundles as packages, for fleets with an engine of their own: a Debian package, or an archive to unpack anywhere.

The bundle lies whole in ``lib/…/edgecsi/<name>/``, so that ``edgecsi inspect`` and ``edgecsi.load`` work on what is
installed and the signature holds; library and header are linked to from where compilers and loaders look, and
pkg-config and CMake know them. The same bundle gives the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import re
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Literal

from edgecsi import disk
from edgecsi.bundle import Bundle, Manifest, signature
from edgecsi.bundle.manifest import MANIFEST, SIGNATURE
from edgecsi.errors import InputError, UsageError

Format = Literal["deb", "tar"]
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Debian's names for our architectures."""

_EPOCH = 1577836800  # 2020-01-01; packages of the same bundle have the same bytes whenever they are made
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+~]{0,63}")
_MAINTAINER = re.compile(r"[^<>\n]{1,100} <[^<>\s@]+@[^<>\s@]+>")


@dataclass(frozen=True)
class Member:
    """A file of a package: its path, and its content or what it links to."""

    path: str
    content: bytes = b""
    link: str = ""


def write_package(
    bundle: Bundle, format: Format, out: Path, *, version: str | None = None, maintainer: str | None = None
) -> Path:
    """Write a package into a folder.

    Args:
        bundle: a verified bundle.
        format: ``deb`` or ``tar``.
        out: the folder; made if it is missing.
        version: of the package; by default the build number, or ``0+`` and the digest's beginning.
        maintainer: ``NAME <MAIL>`` for the Debian package; by default ``$DEBFULLNAME <$DEBEMAIL>``.

    Returns:
        The package's path.

    Raises:
        UsageError: an impossible version or maintainer.
        InputError, ToolchainError: the folder cannot be written.
    """
    manifest = bundle.manifest
    number = version or default_version(manifest)
    if not _VERSION.fullmatch(number):
        raise UsageError(
            f"{number!r} cannot be a package's version", "it has to begin with a digit and have no spaces or dashes",
            "give one like 1.4.2",
        )  # fmt: skip
    arch = ARCHITECTURES[manifest.target.arch]
    if format == "deb":
        name = package_name(manifest)
        data, file = _deb(bundle, number, _maintainer(maintainer)), f"{name}_{number}_{arch}.deb"
    else:
        folder = f"{manifest.name}-{number}-{arch}"
        members = _members(bundle, "", "lib", "include", number)
        tar = _tar([Member(f"{folder}/{m.path}", m.content, m.link) for m in members])
        data, file = gzip.compress(tar, 9, mtime=0), f"{folder}.tar.gz"
    disk.write(out / file, data, "choose another folder with -o")
    return out / file


def default_version(manifest: Manifest) -> str:
    """The build number; without one ``0+`` and the beginning of the digest."""
    return f"0+{manifest.digest[:12]}" if manifest.build_number is None else str(manifest.build_number)


def package_name(manifest: Manifest) -> str:
    """The Debian package's: lower case, digits and dashes."""
    return f"edgecsi-{manifest.name.lower().replace('_', '-').strip('-')}"


def _maintainer(given: str | None) -> str:
    name, mail = os.environ.get("DEBFULLNAME"), os.environ.get("DEBEMAIL")
    found = given or (f"{name} <{mail}>" if name and mail else "")
    if not _MAINTAINER.fullmatch(found):
        raise UsageError(
            f"{found!r} cannot be a package's maintainer" if found else "the package has no maintainer",
            "a Debian package names somebody: NAME <MAIL>",
            "give --maintainer 'Ada Lovelace <ada@example.org>', or set DEBFULLNAME and DEBEMAIL",
        )
    return found


def _members(bundle: Bundle, prefix: str, lib: str, include: str, version: str) -> list[Member]:
    """The package's files below ``prefix``, in folders ``lib`` and ``include``."""
    manifest = bundle.manifest
    name, home = manifest.name, f"{prefix}{lib}/edgecsi/{manifest.name}"
    contents = {file: (bundle.path / file).read_bytes() for file in manifest.files}
    for file, info in manifest.files.items():
        if hashlib.sha256(contents[file]).hexdigest() != info.sha256:
            raise InputError(
                f"{bundle.path / file} was replaced meanwhile", "another build wrote there", "try again"
            )
    contents[MANIFEST] = signature.manifest_bytes(bundle)
    if signed := signature.read_signature(bundle):
        contents[SIGNATURE] = signed
    up = "../" * (include.count("/") + 1)
    return [
        *(Member(f"{home}/{file}", content) for file, content in contents.items()),
        Member(f"{prefix}{lib}/{manifest.library}", link=f"edgecsi/{name}/{manifest.library}"),
        Member(f"{prefix}{include}/{manifest.header}", link=f"{up}{lib}/edgecsi/{name}/{manifest.header}"),
        Member(f"{prefix}{lib}/pkgconfig/{name}.pc", _pkg_config(manifest, lib, include, version, prefix)),
        Member(f"{prefix}{lib}/cmake/{name}/{name}-config.cmake", _cmake(manifest, lib, include)),
        Member(f"{prefix}{lib}/cmake/{name}/{name}-config-version.cmake", _cmake_version(version)),
    ]


def _pkg_config(manifest: Manifest, lib: str, include: str, version: str, prefix: str) -> bytes:
    root = f"/{prefix.rstrip('/')}" if prefix else "${pcfiledir}" + "/.." * (lib.count("/") + 2)
    return f"""\
prefix={root}
libdir=${{prefix}}/{lib}
includedir=${{prefix}}/{include}

Name: {manifest.name}
Description: {manifest.model.family} for {manifest.target.id}, compiled by edgecsi
Version: {version}
Libs: -L${{libdir}} -l{manifest.name}
Libs.private: -lm
Cflags: -I${{includedir}}
""".encode()


def _cmake(manifest: Manifest, lib: str, include: str) -> bytes:
    name = manifest.name
    up = "/.." * (lib.count("/") + 3)
    return f"""\
# find_package({name}) gives the target {name}::{name}.
if(NOT TARGET {name}::{name})
  get_filename_component(_{manifest.cname}_prefix "${{CMAKE_CURRENT_LIST_DIR}}{up}" ABSOLUTE)
  add_library({name}::{name} SHARED IMPORTED)
  set_target_properties({name}::{name} PROPERTIES
    IMPORTED_LOCATION "${{_{manifest.cname}_prefix}}/{lib}/{manifest.library}"
    IMPORTED_SONAME "{manifest.library}"
    INTERFACE_INCLUDE_DIRECTORIES "${{_{manifest.cname}_prefix}}/{include}"
    INTERFACE_LINK_LIBRARIES m)
  unset(_{manifest.cname}_prefix)
endif()
""".encode()


def _cmake_version(version: str) -> bytes:
    return f"""\
set(PACKAGE_VERSION "{version}")
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
  if(PACKAGE_FIND_VERSION STREQUAL PACKAGE_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
endif()
""".encode()


# ---- Debian ------------------------------------------------------------------------------------------------


def _deb(bundle: Bundle, version: str, maintainer: str) -> bytes:
    manifest = bundle.manifest
    name, target = package_name(manifest), manifest.target
    triplet = f"{target.arch}-linux-gnu"
    members = _members(bundle, "usr/", f"lib/{triplet}", f"include/{triplet}", version)
    doc, date = f"usr/share/doc/{name}", format_datetime(datetime.fromtimestamp(_time(), UTC))
    changelog = f"{name} ({version}) stable; urgency=medium\n\n  * Digest of {manifest.name}:\n    {manifest.digest}\n\n"
    changelog += f" -- {maintainer}  {date}\n"
    members += [
        Member(f"{doc}/changelog.gz", gzip.compress(changelog.encode(), 9, mtime=0)),
        Member(f"{doc}/copyright", _copyright(manifest, maintainer)),
    ]
    kilobytes = sum(-(-len(member.content) // 1024) for member in members)
    control = f"""\
Package: {name}
Version: {version}
Architecture: {ARCHITECTURES[target.arch]}
Multi-Arch: same
Maintainer: {maintainer}
Installed-Size: {kilobytes}
Depends: libc6 (>= {target.glibc})
Section: libs
Priority: optional
Description: {manifest.model.family} compiled for {target.id}
 The network {manifest.name} as a C library with its weights inside, compiled
 by edgecsi {manifest.created_with.edgecsi} for {target.mcpu}.
 .
 Entries: {", ".join(sorted(manifest.entries))}.
"""
    sums = "".join(f"{hashlib.md5(m.content).hexdigest()}  {m.path}\n" for m in members if not m.link)
    controls = [
        Member("control", control.encode()),
        Member("md5sums", sums.encode()),
        Member("triggers", b"activate-noawait ldconfig\n"),
    ]
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": _xz(_tar(controls)),
        "data.tar.xz": _xz(_tar(members)),
    }
    return b"!<arch>\n" + b"".join(_ar(file, data) for file, data in parts.items())


def _copyright(manifest: Manifest, maintainer: str) -> bytes:
    return f"""\
This package has the network {manifest.name} ({manifest.model.spec}), compiled to a
library by edgecsi. It was made by {maintainer}.

Copyright of the network and its weights: whoever made them, under the terms
on which they were given to you. edgecsi claims no rights in what it compiles.
""".encode()


def _ar(name: str, data: bytes) -> bytes:
    """A member of a Unix archive (ar(5)): a header of 60 bytes, the content, and one byte more if that is odd."""
    head = f"{name:<16}{_time():<12}{0:<6}{0:<6}{0o100644:<8o}{len(data):<10}`\n".encode("ascii")
    return head + data + b"\n" * (len(data) % 2)


def _tar(members: list[Member]) -> bytes:
    """A tar archive whose bytes depend on nothing but the members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        seen: set[str] = set()
        for member in sorted(members, key=lambda m: m.path):
            parents = member.path.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                folder = "/".join(parents[:depth])
                if folder not in seen:
                    seen.add(folder)
                    archive.addfile(_info(f"./{folder}", tarfile.DIRTYPE, 0o755))
            info = _info(f"./{member.path}", tarfile.SYMTYPE if member.link else tarfile.REGTYPE, 0o644)
            info.linkname, info.size = member.link, len(member.content)
            archive.addfile(info, io.BytesIO(member.content))
    return buffer.getvalue()


def _info(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.mode = kind, 0o777 if kind == tarfile.SYMTYPE else mode
    info.mtime, info.uname, info.gname = _time(), "root", "root"
    return info


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, preset=6)


def _time() -> int:
    """What every file is dated: ``$SOURCE_DATE_EPOCH`` if it is set, as for other reproducible builds."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(given) if re.fullmatch(r"\d{1,10}", given) else _EPOCH
