"""Opening a bundle's library in this process, and saying why that cannot be."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import weakref
from _ctypes import dlclose, dlopen, dlsym
from pathlib import Path
from typing import Any

from edgecsi import cpu
from edgecsi.bundle.read import Bundle
from edgecsi.errors import BundleError, DeviceError, ToolchainError


def check_runs_here(bundle: Bundle) -> None:
    """Raise DeviceError, naming what is missing, unless this CPU can run the bundle's library."""
    target = bundle.manifest.target
    if target.arch != cpu.machine():
        raise DeviceError(
            f"{bundle.path} cannot run on this machine",
            f"it is built for {target.arch} ({target.id}), this machine is {cpu.machine()}",
            "run it with --device emulate, or build with --target host",
        )
    if missing := [feature for feature in target.features if feature not in cpu.features()]:
        raise DeviceError(
            f"{bundle.path} cannot run on this CPU",
            f"it is built for {target.id}, which needs {', '.join(missing)}; this CPU lacks them",
            "build with --target host, or for an older target (edgecsi targets)",
        )


class SharedLibrary:
    """A loaded library, which is unloaded when it and the last function taken from it go.

    The functions of ``ctypes.CDLL`` hold themselves, so that only the garbage collector would find them.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        weakref.finalize(self, dlclose, handle).atexit = False

    def function(self, name: str, result: type[Any], *arguments: type[Any]) -> Any:
        """A C function by its name, result and arguments, with its ``address``; called without holding Python's lock."""
        address = dlsym(self._handle, name)
        found: Any = ctypes.CFUNCTYPE(result, *arguments)(address)
        found.library, found.address = self, address
        return found


def open_library(bundle: Bundle) -> SharedLibrary:
    """Load a bundle's library.

    Raises:
        BundleError, DeviceError, ToolchainError: it cannot be loaded; by whose fault.
    """
    path = bundle.library
    try:
        return SharedLibrary(dlopen(_distinct_name(path), os.RTLD_NOW))
    except OSError as error:
        reason = str(error)
        what = f"{path} cannot be loaded"
        if found := re.search(r"version `(GLIBC_[0-9.]+)' not found", reason):
            raise DeviceError(
                what,
                f"it needs {found[1].replace('_', ' ').lower()}, this machine has {' '.join(platform.libc_ver())}",
                f"build for a target with an older glibc than {bundle.manifest.target.glibc}",
            ) from None
        if "failed to map segment" in reason and os.statvfs(path.parent).f_flag & os.ST_NOEXEC:
            raise ToolchainError(
                what,
                f"{path.parent} is on a file system that forbids programs (mounted noexec)",
                "copy the bundle elsewhere, or if it is a temporary folder, set TMPDIR to another one",
            ) from None
        if "cannot open shared object file" in reason and path.name not in reason.partition(":")[0]:
            raise DeviceError(what, reason, "install the library it names, for example libc6") from None
        raise BundleError(what, reason, "build or copy the bundle again") from None


_loaded_files: dict[Path, list[tuple[int, int]]] = {}


def _distinct_name(path: Path) -> str:
    """A spelling of ``path`` that dlopen has not seen for another file.

    glibc takes an equal name for an equal library and hands out the old one, even if the file was replaced by
    a new build since. A few ``./`` more make it look at the file, which it knows again if it is the same.
    """
    status = path.stat()
    known = _loaded_files.setdefault(path, [])
    if (file := (status.st_dev, status.st_ino)) not in known:
        known.append(file)
    return f"{path.parent}/{'./' * known.index(file)}{path.name}"
