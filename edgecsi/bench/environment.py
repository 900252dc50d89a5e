"""The machine around a measurement, and whether the measurement can be believed.

A :class:`Snapshot` is taken before and after; :func:`judge` turns the two into a :class:`Validity`.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from edgecsi.bench.result import Machine, Snapshot, Validity
from edgecsi.bench.result import State as ValidityState
from edgecsi.device.state import THROTTLE_BITS, THROTTLED, State, cpu_name, read

OTHER_LOAD = 0.05
"""Share of one core that other processes may use while we measure."""
STOLEN = 0.02
"""Share of one core that a hypervisor may take away."""
FREQUENCY_CHANGE = 0.05
"""Relative change of the highest core frequency that is still called steady."""
CPUS = "sys/devices/system/cpu"
TICKS = 100
"""A second in ``/proc/stat``: the same on every Linux."""
PACKAGES = ("edgecsi", "numpy", "torch", "apache-tvm", "apache-tvm-ffi", "ziglang")


def machine(state: State | None = None) -> Machine:
    """Describes a machine.

    Args:
        state: of another machine; of this one by default.
    """
    here, state = state is None, read() if state is None else state
    cpuinfo = state.get("proc/cpuinfo", "")
    system, _, architecture = state.get("uname", "").strip().rpartition(" ")
    cores = state.get("cores", "").strip()
    return Machine(
        cpu=cpu_name(state) or architecture or "unknown",
        cores=int(cores) if cores.isdecimal() else 1,
        architecture=architecture,
        system=f"{system}, Python {platform.python_version()}" if here else system,
        hypervisor=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE)),
        caches=_caches(state),
        versions={name: version for name in PACKAGES if (version := _version(name)) is not None},
    )


def snapshot(state: State | None = None) -> Snapshot:
    """Reads the state of a machine now; here that takes about a millisecond.

    Args:
        state: of another machine; of this one by default.
    """
    clock, own = time.monotonic(), 0.0  # what we used on another machine, its caller knows
    if state is None:
        state, used = read(), os.times()
        own = used.user + used.system + used.children_user + used.children_system
    elif uptime := _numbers(state, "proc/uptime"):
        clock = uptime[0]
    kilohertz = _numbers(state, f"{CPUS}/cpu[0-9]*/cpufreq/scaling_cur_freq")
    megahertz = [
        float(value)
        for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", state.get("proc/cpuinfo", ""), re.MULTILINE)
    ]
    millidegrees = _numbers(state, "sys/class/thermal/thermal_zone*/temp")
    load = state.get("proc/loadavg", "").split()
    busy, stolen = _cpu_seconds(state.get("proc/stat", ""))
    throttled = re.search(r"throttled=(0x[0-9a-fA-F]+)", state.get(THROTTLED, ""))
    return Snapshot(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        clock=clock,
        load_average=(float(load[0]), float(load[1]), float(load[2])) if len(load) >= 3 else None,
        governor=state.get(f"{CPUS}/cpu0/cpufreq/scaling_governor", "").strip() or None,
        frequency=tuple(value / 1000 for value in kilohertz) or tuple(megahertz) or None,
        temperature=max(millidegrees) / 1000 if millidegrees else None,
        throttled=int(throttled.group(1), 16) if throttled else None,
        busy=busy,
        stolen=stolen,
        own=own,
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

    during, earlier = throttling(before, after)
    invalid += during
    suspect += earlier

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

    state: ValidityState = "invalid" if invalid else "suspect" if suspect else "valid"
    return Validity(state, (*invalid, *suspect))


def throttling(before: Snapshot, after: Snapshot) -> tuple[list[str], list[str]]:
    """What a Raspberry Pi says slowed it down between two snapshots, and what did so earlier, since it was started."""
    during, earlier = [], []
    now = (before.throttled or 0) | (after.throttled or 0)
    new = (after.throttled or 0) & ~(before.throttled or 0)
    for bit, name in THROTTLE_BITS.items():
        if now & 1 << bit or new & 1 << bit + 16:
            during.append(f"{name} while measuring")
        elif now & 1 << bit + 16:
            earlier.append(f"{name} since boot")
    return during, earlier


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(state: State, pattern: str) -> list[float]:
    """The numbers that files of this pattern begin with."""
    texts = (state[path].split() for path in sorted(fnmatch.filter(state, pattern)))
    return [float(text[0]) for text in texts if text and re.fullmatch(r"-?\d+(\.\d+)?", text[0])]


def _caches(state: State) -> dict[str, str]:
    """``{"L1d": "48K", "L2": "1024K", ...}`` of the first core."""
    found: dict[str, str] = {}
    for path in sorted(fnmatch.filter(state, f"{CPUS}/cpu0/cache/index*/level")):
        level, kind, size = (
            state.get(f"{path.removesuffix('level')}{name}", "").strip() for name in ("level", "type", "size")
        )
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
    return (user + nice + system + irq + softirq) / TICKS, steal / TICKS
