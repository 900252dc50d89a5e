"""Calling small networks without what ctypes costs: a compiled module, where a build or a bench has left one.

It is compiled by :func:`edgecsi.device.toolchain.fast_call`, for this Python and this numpy, into the user's cache.
Loading a bundle never compiles: without the module, calls go through ctypes and take a microsecond or two more.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from functools import cache
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from edgecsi import disk

SOURCE = Path(__file__).parent / "native" / "fast_call.c"


@cache
def name() -> str:
    """Of the compiled module's file: its source, this Python and this numpy."""
    import numpy as np

    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    key = hashlib.sha256(SOURCE.read_bytes() + f"{sys.version}\0{suffix}\0{np.__version__}".encode())
    return f"{key.hexdigest()[:16]}-fast_call{suffix}"


def place() -> Path:
    """Where the compiled module lies, if it was compiled."""
    return disk.cache_dir() / "device" / name()


def module() -> Any:
    """The compiled module; None if there is none for this Python, or it cannot be loaded."""
    path = place()
    try:
        return _load(path) if path.is_file() else None
    except (OSError, ImportError):  # no rights, mounted noexec, another C library
        return None


@cache
def _load(path: Path) -> Any:
    spec = ModuleSpec("fast_call", ExtensionFileLoader("fast_call", str(path)), origin=str(path))
    found = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(found)
    return found
