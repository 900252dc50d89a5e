"""The machine around a measurement, and whether the measurement can be believed.

A :class:`Snapshot` is taken before and after; :func:`judge` turns the two into a :class:`Validity`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from edgecsi.bench.result import Machine, Snapshot, State, Validity

OTHER_LOAD = 0.05
"""Share of one core that other processes may use while we measure."""
STOLEN = 0.02
"""Share of one core that a hypervisor may take away."""
FREQUENCY_CHANGE = 0.05
"""Relative change of the highest core frequency that is still called steady."""
THROTTLE_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
"""Raspberry Pi, ``vcgencmd get_throttled``: bits 0-3 say what is so now, bits 16-19 what happened since
boot."""
PACKAGES = ("edgecsi", "numpy", "torch", "apache-tvm", "apache-tvm-ffi", "ziglang")


def machine(root: Path = Path("/"), packages: Sequence[str] = PACKAGES) -> Machine:
    """Describes this machine from ``/proc`` and ``/sys`` below ``root``, with the versions of what is
    installed."""
    cpuinfo = _read(root / "proc/cpuinfo") or ""
    # ARM kernels name the board, not the CPU.
    board = (_read(root / "proc/device-tree/model") or "").strip("\x00 \n")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    family = re.search(r"^cpu family\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    name = found.group(1) if found else ""
    cpu = board or (f"{name} (family {family.group(1)})" if name and family else name) or platform.processor()
    return Machine(
        cpu=cpu or "unknown",
        cores=os.cpu_count() or 1,
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        hypervisor=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE)),
        caches=_caches(root / "sys/devices/system/cpu/cpu0/cache"),
        versions={name: version for name in packages if (version := _version(name)) is not None},
    )


def snapshot(root: Path = Path("/")) -> Snapshot:
    """Reads the state of the machine now; takes about a millisecond."""
    cpus = root / "sys/devices/system/cpu"
    current = sorted(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    kilohertz = [float(text) for path in current if (text := _read(path))]
    megahertz = [
        float(value)
        for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", _read(root / "proc/cpuinfo") or "", re.MULTILINE)
    ]
    millidegrees = [
        float(text)
        for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))
        if (text := _read(path)) and re.fullmatch(r"-?\d+\s*", text)
    ]
    load = (_read(root / "proc/loadavg") or "").split()
    busy, stolen = _cpu_seconds(_read(root / "proc/stat") or "")
    own = os.times()
    return Snapshot(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        clock=time.monotonic(),
        load_average=(float(load[0]), float(load[1]), float(load[2])) if len(load) >= 3 else None,
        governor=(_read(cpus / "cpu0/cpufreq/scaling_governor") or "").strip() or None,
        frequency=tuple(value / 1000 for value in kilohertz) or tuple(megahertz) or None,
        temperature=max(millidegrees) / 1000 if millidegrees else None,
        throttled=_throttled(),
        busy=busy,
        stolen=stolen,
        own=own.user + own.system + own.children_user + own.children_system,
    )


def other_load(before: Snapshot, after: Snapshot) -> float | None:
    """Cores' worth of CPU time that other processes used between the two; None where it cannot be read."""
    elapsed = after.clock - before.clock
    if before.busy is None or after.busy is None or elapsed <= 0:
        return None
    return max(0.0, (after.busy - before.busy - (after.own - before.own)) / elapsed)


def judge(
    before: Snapshot,
    after: Snapshot,
    *,
    where: Machine | None = None,
    emulated: bool = False,
    notes: Sequence[str] = (),
) -> Validity:
    """Decides whether what was measured between two snapshots can be believed. What could not be read may
    have disturbed it, so it is suspect as well.

    Args:
        before: taken just before the first timed call.
        after: taken just after the last.
        where: the machine, if known: a Raspberry Pi must say whether it was throttled.
        emulated: the code ran under QEMU.
        notes: further grounds for suspicion that the measurement itself found.
    """
    invalid: list[str] = []
    suspect: list[str] = list(notes)
    if emulated:
        invalid.append("emulated: QEMU proves the answer and counts instructions, its times are no latencies")

    now = (before.throttled or 0) | (after.throttled or 0)
    during = (after.throttled or 0) & ~(before.throttled or 0)
    for bit, name in THROTTLE_BITS.items():
        if now & 1 << bit or during & 1 << bit + 16:
            invalid.append(f"{name} while measuring")
        elif now & 1 << bit + 16:
            suspect.append(f"{name} since boot")

    others = other_load(before, after)
    if others is None:
        suspect.append("what other processes used could not be read (/proc/stat)")
    if not before.frequency or not after.frequency:
        suspect.append("the frequency could not be read (cpufreq, /proc/cpuinfo)")
    unread = before.throttled is None or after.throttled is None
    if unread and where is not None and where.cpu.startswith("Raspberry Pi"):
        suspect.append("whether it was throttled could not be read (vcgencmd get_throttled)")
    if others is not None and others > OTHER_LOAD:
        suspect.append(f"other processes used {others:.2f} of a core")
    elapsed = after.clock - before.clock
    if before.stolen is not None and after.stolen is not None and elapsed > 0:
        stolen = (after.stolen - before.stolen) / elapsed
        if stolen > STOLEN:
            suspect.append(f"the hypervisor took {stolen:.2f} of a core away")
    if before.frequency and after.frequency:
        first, last = max(before.frequency), max(after.frequency)
        if abs(last - first) > FREQUENCY_CHANGE * first:
            suspect.append(f"the frequency went from {first:.0f} to {last:.0f} MHz")
    if before.governor != after.governor:
        suspect.append(f"the governor changed from {before.governor} to {after.governor}")

    state: State = "invalid" if invalid else "suspect" if suspect else "valid"
    return Validity(state, (*invalid, *suspect))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _caches(folder: Path) -> dict[str, str]:
    """``{"L1d": "48K", "L2": "1024K", ...}`` of the first core."""
    found: dict[str, str] = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = ((_read(index / name) or "").strip() for name in ("level", "type", "size"))
        if level and size:
            found[f"L{level}" + {"Data": "d", "Instruction": "i"}.get(kind, "")] = size
    return found


def _cpu_seconds(stat: str) -> tuple[float | None, float | None]:
    """(busy, stolen) of the first line of ``/proc/stat``: user nice system idle iowait irq softirq steal
    ..."""
    fields = stat.split("\n", 1)[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None, None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (float(field) for field in fields[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick


def _throttled() -> int | None:
    """What ``vcgencmd get_throttled`` says (``throttled=0x50000``), None where there is no such command."""
    try:
        said = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"throttled=(0x[0-9a-fA-F]+)", said.stdout)
    return int(found.group(1), 16) if found else None
