"""The CPU this process runs on, as Linux describes it, and the names LLVM has for the same things."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

# Feature names of /proc/cpuinfo and what LLVM calls them: everything code for arithmetic may make use of.
LLVM_FEATURE: dict[str, dict[str, str]] = {
    "x86_64": {
        "pni": "sse3",
        "ssse3": "ssse3",
        "sse4_1": "sse4.1",
        "sse4_2": "sse4.2",
        "popcnt": "popcnt",
        "cx16": "cx16",
        "lahf_lm": "sahf",
        "avx": "avx",
        "avx2": "avx2",
        "bmi1": "bmi",
        "bmi2": "bmi2",
        "f16c": "f16c",
        "fma": "fma",
        "abm": "lzcnt",
        "movbe": "movbe",
        "adx": "adx",
        "aes": "aes",
        "pclmulqdq": "pclmul",
        "sha_ni": "sha",
        "gfni": "gfni",
        "vaes": "vaes",
        "vpclmulqdq": "vpclmulqdq",
        "avx_vnni": "avxvnni",
        "avx_vnni_int8": "avxvnniint8",
        "avx_ifma": "avxifma",
        "avx512f": "avx512f",
        "avx512bw": "avx512bw",
        "avx512cd": "avx512cd",
        "avx512dq": "avx512dq",
        "avx512vl": "avx512vl",
        "avx512ifma": "avx512ifma",
        "avx512vbmi": "avx512vbmi",
        "avx512_vbmi2": "avx512vbmi2",
        "avx512_vnni": "avx512vnni",
        "avx512_bitalg": "avx512bitalg",
        "avx512_vpopcntdq": "avx512vpopcntdq",
        "avx512_bf16": "avx512bf16",
        "avx512_fp16": "avx512fp16",
        "avx512_vp2intersect": "avx512vp2intersect",
        "amx_tile": "amx-tile",
        "amx_int8": "amx-int8",
        "amx_bf16": "amx-bf16",
    },
    "aarch64": {
        "fp": "fp-armv8",
        "asimd": "neon",
        "aes": "aes",
        "pmull": "aes",
        "sha1": "sha2",
        "sha2": "sha2",
        "crc32": "crc",
        "atomics": "lse",
        "fphp": "fullfp16",
        "asimdhp": "fullfp16",
        "asimdrdm": "rdm",
        "asimddp": "dotprod",
        "asimdfhm": "fp16fml",
        "lrcpc": "rcpc",
        "dcpop": "ccpp",
        "jscvt": "jsconv",
        "fcma": "complxnum",
        "sha3": "sha3",
        "sha512": "sha3",
        "sm3": "sm4",
        "sm4": "sm4",
        "i8mm": "i8mm",
        "bf16": "bf16",
        "sve": "sve",
        "sve2": "sve2",
    },
}

# Features that another one brings along: without the key LLVM drops the values too.
_CARRIES = {
    "avx512f": {name for name in LLVM_FEATURE["x86_64"] if name.startswith("avx512")} - {"avx512f"},
    "amx_tile": {"amx_int8", "amx_bf16"},
    "sve": {"sve2"},
}

# (vendor, family) and then (first model, last model, LLVM name). Families and models as CPUID counts them.
_X86_CPUS: dict[tuple[str, int], list[tuple[int, int, str]]] = {
    ("AuthenticAMD", 0x17): [(0x00, 0x2F, "znver1"), (0x30, 0xFF, "znver2")],
    ("AuthenticAMD", 0x19): [
        (0x00, 0x0F, "znver3"),
        (0x10, 0x1F, "znver4"),
        (0x20, 0x5F, "znver3"),
        (0x60, 0xAF, "znver4"),
    ],
    ("AuthenticAMD", 0x1A): [(0x00, 0x7F, "znver5")],
    ("GenuineIntel", 0x06): [
        (0x3C, 0x3C, "haswell"),
        (0x3D, 0x3D, "broadwell"),
        (0x3F, 0x3F, "haswell"),
        (0x45, 0x46, "haswell"),
        (0x47, 0x47, "broadwell"),
        (0x4E, 0x4E, "skylake"),
        (0x4F, 0x4F, "broadwell"),
        (0x55, 0x55, "skylake-avx512"),
        (0x56, 0x56, "broadwell"),
        (0x5E, 0x5E, "skylake"),
        (0x6A, 0x6C, "icelake-server"),
        (0x7D, 0x7E, "icelake-client"),
        (0x8C, 0x8D, "tigerlake"),
        (0x8E, 0x8E, "skylake"),
        (0x8F, 0x8F, "sapphirerapids"),
        (0x97, 0x9A, "alderlake"),
        (0x9E, 0x9E, "skylake"),
        (0xA5, 0xA6, "skylake"),
        (0xA7, 0xA7, "rocketlake"),
        (0xAD, 0xAE, "graniterapids"),
        (0xB7, 0xBF, "raptorlake"),
        (0xCF, 0xCF, "emeraldrapids"),
    ],
}

# (implementer, part) as /proc/cpuinfo has them.
_ARM_CPUS = {
    (0x41, 0xD03): "cortex-a53",
    (0x41, 0xD05): "cortex-a55",
    (0x41, 0xD07): "cortex-a57",
    (0x41, 0xD08): "cortex-a72",
    (0x41, 0xD09): "cortex-a73",
    (0x41, 0xD0A): "cortex-a75",
    (0x41, 0xD0B): "cortex-a76",
    (0x41, 0xD0C): "neoverse-n1",
    (0x41, 0xD40): "neoverse-v1",
    (0x41, 0xD41): "cortex-a78",
    (0x41, 0xD49): "neoverse-n2",
    (0x41, 0xD4F): "neoverse-v2",
}


def machine() -> str:
    """``x86_64`` or ``aarch64`` (or whatever else this is), as ``uname -m`` says it."""
    return platform.machine()


@cache
def _cpuinfo() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


@cache
def features() -> frozenset[str]:
    """All feature names Linux lists for this CPU (``avx2``, ``asimd``, ...), known to LLVM or not."""
    fields = _cpuinfo()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def llvm_name() -> str:
    """LLVM's name for this CPU (``znver5``, ``cortex-a76``), or ``""`` for a CPU not in the tables here."""
    fields = _cpuinfo()
    try:
        if machine() == "x86_64":
            ranges = _X86_CPUS.get((fields["vendor_id"], int(fields["cpu family"])), [])
            model = int(fields["model"])
            return next((name for first, last, name in ranges if first <= model <= last), "")
        return _ARM_CPUS.get((int(fields["CPU implementer"], 0), int(fields["CPU part"], 0)), "")
    except (KeyError, ValueError):
        return ""


def arm_name(implementer: int | None, part: int | None) -> str:
    """LLVM's name for an ARM CPU from its identification register; ``""`` for one not in the tables here."""
    return _ARM_CPUS.get((implementer or 0, part or 0), "")


def llvm_attributes() -> list[str]:
    """What to tell LLVM beside the CPU's name so that it uses exactly the features this machine has.

    A name alone is not enough: virtual machines often hide part of their CPU, which would lead to illegal
    instructions, or show features under the name of an older one.

    Returns:
        attributes like ``-avx512fp16`` or ``+avx512vnni``, in a fixed order.
    """
    known = LLVM_FEATURE.get(machine(), {})
    present = {llvm for name, llvm in known.items() if name in features()}
    absent = {name: llvm for name, llvm in known.items() if llvm not in present}
    carried = {name for key in absent for name in _CARRIES.get(key, ())}
    off = {f"-{llvm}" for name, llvm in absent.items() if name not in carried}
    on = {f"+{llvm}" for llvm in present}
    return sorted(off) + sorted(on)


def cache_bytes() -> dict[int, int]:
    """Size in bytes of each data cache level (1, 2, 3) the kernel reports."""
    sizes: dict[int, int] = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind = (index / "type").read_text().strip()
            level = int((index / "level").read_text())
            size = (index / "size").read_text().strip()
            if kind in ("Data", "Unified") and size.endswith("K"):
                sizes[level] = int(size[:-1]) * 1024
        except (OSError, ValueError):
            continue
    return sizes


def cores() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0))
