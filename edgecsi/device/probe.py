"""A board in the user's words: what it is, how it feels, and which target to build for."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

from edgecsi import cpu
from edgecsi import target as targets
from edgecsi.device.board import Board, Trouble
from edgecsi.device.state import THROTTLE_BITS, THROTTLED, State, cpu_name
from edgecsi.errors import TargetError

_CPU = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Probe:
    """What ``edgecsi device probe`` tells; None where the device does not say.

    Attributes:
        name: as the user named it.
        board: the board's name, or its CPU's.
        system: operating system and kernel.
        arch, bits: of the kernel, and of the programs.
        glibc: version of the C library.
        cpu: LLVM's name of the CPU; empty if it is not in our tables.
        features: as ``/proc/cpuinfo`` names them.
        cores: how many.
        cache_bytes: data caches by level.
        page_bytes: of memory.
        governor, mhz, max_mhz: how fast it runs now, and may.
        celsius: the hottest sensor.
        throttled: what a Raspberry Pi's firmware complains about, in words; empty if nothing.
        memory_bytes, free_bytes: RAM, and space left in ``folder``.
        folder: where our files go.
        emulated: QEMU plays the CPU.
        target: the target that ships and fits best.
        troubles: what prevents bundles from running.
    """

    name: str
    board: str
    system: str
    arch: str
    bits: int | None
    glibc: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    cache_bytes: dict[int, int]
    page_bytes: int | None
    governor: str | None
    mhz: float | None
    max_mhz: float | None
    celsius: float | None
    throttled: tuple[str, ...] | None
    memory_bytes: int | None
    free_bytes: int | None
    folder: str
    emulated: bool
    target: str | None
    troubles: tuple[Trouble, ...]


def describe(board: Board) -> Probe:
    """What is known of a board."""
    state, answers = board.state, board.answers
    current, highest = (
        _numbers(state, f"{_CPU}/cpu[0-9]*/cpufreq/scaling_cur_freq"),
        _numbers(state, f"{_CPU}/cpu0/cpufreq/cpuinfo_max_freq"),
    )
    warmest = _numbers(state, "sys/class/thermal/thermal_zone*/temp")
    memory = re.search(r"^MemTotal:\s*(\d+) kB", state.get("proc/meminfo", ""), re.MULTILINE)
    page, cores = (
        answers.get("page", "").strip() or str(board.cpu.get("page", "")),
        state.get("cores", "").strip(),
    )
    kernel = state.get("uname", "").strip().rpartition(" ")[0]
    return Probe(
        name=board.name,
        board=cpu_of(board),
        system=", ".join(part for part in (answers.get("os", "").strip(), kernel) if part),
        arch=board.arch,
        bits=board.bits,
        glibc=board.glibc,
        cpu=_llvm_name(board),
        features=tuple(sorted(board.features)),
        cores=int(cores) if cores.isdecimal() else 1,
        cache_bytes=_caches(state),
        page_bytes=int(page) if page.isdecimal() else None,
        governor=state.get(f"{_CPU}/cpu0/cpufreq/scaling_governor", "").strip() or None,
        mhz=max(current) / 1000 if current else None,
        max_mhz=highest[0] / 1000 if highest else None,
        celsius=max(warmest) / 1000 if warmest else None,
        throttled=throttled(state),
        memory_bytes=int(memory[1]) * 1024 if memory else None,
        free_bytes=board.free_bytes,
        folder=board.folder,
        emulated=board.emulated,
        target=suggest_target(board),
        troubles=tuple(board.troubles()),
    )


def cpu_of(board: Board) -> str:
    """Its name, or its CPU's: ``Raspberry Pi 4 Model B Rev 1.4``, ``AMD EPYC (family 25)``, ``cortex-a72 (QEMU)``."""
    if board.emulated:
        return f"{_llvm_name(board) or board.arch} (QEMU)"
    return cpu_name(board.state) or _llvm_name(board) or board.arch


def throttled(state: State) -> tuple[str, ...] | None:
    """``("under-voltage now", "throttled since boot")``; None where there is no such firmware."""
    found = re.search(r"throttled=(0x[0-9a-fA-F]+)", state.get(THROTTLED, ""))
    if found is None:
        return None
    bits = int(found[1], 16)
    now = [f"{word} now" for bit, word in THROTTLE_BITS.items() if bits >> bit & 1]
    before = [f"{word} since boot" for bit, word in THROTTLE_BITS.items() if bits >> bit + 16 & 1]
    return (*now, *before)


def suggest_target(board: Board) -> str | None:
    """The target that ships, fits the board, and makes most of its CPU; None if there is none."""
    best: tuple[tuple[bool, int], str] | None = None
    for name in targets.list_targets():
        try:
            target = targets.load(name)
        except TargetError:  # `host`, where this machine has no target
            continue
        fits = target.arch == board.arch and set(target.features) <= board.features
        if not fits or target.id != name or name == "host":
            continue
        rank = (target.mcpu == _llvm_name(board), len(target.features))
        if best is None or rank > best[0]:
            best = (rank, name)
    return best[1] if best else None


def _llvm_name(board: Board) -> str:
    cpuinfo = board.state.get("proc/cpuinfo", "")
    found = {
        key: re.search(rf"^CPU {key}\s*:\s*(0x[0-9a-fA-F]+)", cpuinfo, re.MULTILINE)
        for key in ("implementer", "part")
    }
    read = {key: int(match[1], 16) for key, match in found.items() if match}
    return cpu.arm_name(
        board.cpu.get("implementer", read.get("implementer")), board.cpu.get("part", read.get("part"))
    )


def _numbers(state: State, pattern: str) -> list[float]:
    texts = (state[path].strip() for path in fnmatch.filter(state, pattern))
    return [float(text) for text in texts if re.fullmatch(r"-?\d+", text)]


def _caches(state: State) -> dict[int, int]:
    found: dict[int, int] = {}
    for path in fnmatch.filter(state, f"{_CPU}/cpu0/cache/index*/level"):
        folder = path.removesuffix("level")
        level, kind, size = (state.get(f"{folder}{name}", "").strip() for name in ("level", "type", "size"))
        if kind in ("Data", "Unified") and level.isdecimal() and re.fullmatch(r"\d+K", size):
            found[int(level)] = int(size[:-1]) * 1024
    return dict(sorted(found.items()))
