"""May this bundle go to this device? Answered before anything is copied."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgecsi.bundle import Bundle, Manifest
from edgecsi.errors import BundleError, DeviceError

_MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Facts:
    """What a device said about itself.

    Attributes:
        machine: ``uname -m``. bits: of its programs, 32 or 64; 0 if it could not say.
        libc: the C library in words. features: as /proc/cpuinfo names them; empty if it does not.
        lacks: basic tools that are missing.
    """

    machine: str
    bits: int
    libc: str
    features: frozenset[str]
    lacks: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> Facts:
        """From what the step ``probe`` printed."""
        found: dict[str, list[str]] = {}
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            found.setdefault(key, []).append(value.strip()[:10_000])

        def one(key: str) -> str:
            return found.get(key, [""])[0]

        bits = int(one("bits")) if one("bits") in ("32", "64") else 0
        features = frozenset(one("features").split())
        return Facts(one("machine"), bits, one("libc"), features, tuple(found.get("lacks", ())))


def admit(bundle: Bundle, facts: Facts, name: str) -> None:
    """Refuse a bundle that cannot run there.

    Args:
        bundle: what is to go there.
        facts: what the device said.
        name: how messages call it.

    Raises:
        DeviceError: another processor, a 32-bit userland, a C library that is another one or too old, a CPU
            feature that is missing; the first of these, with its cure.
    """
    target, what = bundle.manifest.target, f"{bundle.manifest.name} cannot run on {name}"
    if facts.lacks:
        raise DeviceError(
            f"{name} lacks {', '.join(facts.lacks)}", "deploying needs these tools there",
            "install coreutils and findutils, or BusyBox, on the device",
        )  # fmt: skip
    if _MACHINES.get(facts.machine, facts.machine) != target.arch:
        raise DeviceError(
            what, f"it is built for {target.arch} ({target.id}), the device is {facts.machine or 'unknown'}",
            "build it for the device's processor (edgecsi targets)",
        )  # fmt: skip
    if facts.bits == 32:
        raise DeviceError(
            what, "the device has a 64-bit kernel, but its programs and libraries are 32-bit ones",
            "install the 64-bit system on it (Raspberry Pi Imager: Raspberry Pi OS, 64-bit)",
        )  # fmt: skip
    version = re.search(r"(?i)(?:glibc|libc)\D*(\d+)\.(\d+)", facts.libc)
    if version is None or "musl" in facts.libc:
        raise DeviceError(
            what, f"it needs glibc {target.glibc} or newer, and the device has {facts.libc or 'another C library'}",
            "use a system with glibc there, such as Debian, Raspberry Pi OS or Ubuntu",
        )  # fmt: skip
    if tuple(map(int, version.groups())) < tuple(map(int, target.glibc.split("."))):
        raise DeviceError(
            what, f"it needs glibc {target.glibc} or newer, and the device has {version[1]}.{version[2]}",
            "update the device's system, or build for an older glibc (the key `glibc` of a target file)",
        )  # fmt: skip
    # Some emulators show the host's CPU there, that is, no feature by a name we know: the trial run decides.
    known = facts.features if _plausible(facts.features, target.arch) else frozenset(target.features)
    if missing := [feature for feature in target.features if feature not in known]:
        raise DeviceError(
            what, f"it is built for {target.id}, which needs {', '.join(missing)}; the device's CPU lacks them",
            "build for an older target (edgecsi targets)",
        )  # fmt: skip


def refuse_downgrade(new: Manifest, active: Manifest | None, name: str) -> None:
    """Refuse a bundle that is older than what the device has.

    Raises:
        BundleError: its build number is lower, or it has none where the active one has.
    """
    if active is None or active.build_number is None:
        return
    if new.build_number is None or new.build_number < active.build_number:
        number = "no build number" if new.build_number is None else f"build number {new.build_number}"
        raise BundleError(
            f"{new.name} is older than what {name} runs", f"it has {number}, the device {active.build_number}",
            "deploy a newer build; --downgrade goes back on purpose",
        )  # fmt: skip


def _plausible(features: frozenset[str], arch: str) -> bool:
    return ("sse2" if arch == "x86_64" else "asimd") in features
