"""What this machine's CPU can do, asked of the kernel (Linux)."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def cpu_features() -> frozenset[str]:
    """The features that ``/proc/cpuinfo`` lists for the first processor; empty without such a file."""
    return frozenset(_cpuinfo("flags", "Features").split())


def missing_features(wanted: Iterable[str]) -> list[str]:
    """Those of the wanted features that this CPU lacks, in the order given."""
    present = cpu_features()
    return [feature for feature in wanted if feature not in present]


def cpu_name() -> str:
    """The CPU's name as people know it, for example ``Raspberry Pi 5 Model B`` or ``AMD EPYC``."""
    return _cpuinfo("model name", "Model", "CPU part") or f"unknown {machine()}"


def _cpuinfo(*keys: str) -> str:
    """The value of the first of these keys that ``/proc/cpuinfo`` has; empty without it."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    values: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    return next((values[key] for key in keys if key in values), "")


def machine() -> str:
    """This machine's architecture by the manifest's name, ``x86_64`` or ``aarch64``, or the kernel's."""
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
