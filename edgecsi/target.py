"""What to compile for: a board or CPU, read from a TOML file in ``targets/``.

A file names its CPU the way LLVM does, lists the features the CPU must have the way /proc/cpuinfo does,
and estimates how fast the CPU computes and reads. It may build on another file (``extends``), be another
name for one (``alias``), or take what it can from the machine it is read on (``detect``).
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from edgecsi import cpu
from edgecsi.errors import TargetError, shown
from edgecsi.names import suggestion
from edgecsi.schema import Line, between, convert, matching, parse_toml, read_bytes

Arch = Literal["x86_64", "aarch64"]
TRIPLES: dict[str, str] = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}

_FOLDER = Path(__file__).parent / "_targets"  # in a checkout a link to targets/

_MAX_FILE_BYTES = 64 * 1024
_MAX_EXTENDS = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
CpuName = Annotated[str, matching(_NAME.pattern, "a CPU name of LLVM, like cortex-a72")]
Attribute = Annotated[str, matching("[+-][a-z0-9][a-z0-9._-]{0,60}", "an attribute like +dotprod or -aes")]
Feature = Annotated[str, matching("[a-z0-9][a-z0-9_]{0,60}", "a name as in /proc/cpuinfo")]
Half = Literal["", "f16"]
Glibc = Annotated[str, matching(r"2\.[0-9]{1,2}", "a version like 2.28")]
Dot = Literal["", "avx512_vnni", "avx_vnni", "avx2", "sdot", "neon"]
Bytes = Annotated[int, between(1, 1 << 40)]
Rate = Annotated[float, between(1e-6, 1e6)]
"""10^9 a second."""


@dataclass(frozen=True)
class Target:
    """One board or CPU. Bandwidths and peaks are of one core and serve estimates, never reports."""

    id: str
    """Name of the target: the file's name without ``.toml``."""
    description: Line
    """What it is, in a line."""
    arch: Arch
    """``x86_64`` or ``aarch64``."""
    triple: str
    """LLVM triple, for example ``aarch64-linux-gnu``."""
    mcpu: CpuName
    """LLVM's name of the CPU."""
    features: tuple[Feature, ...]
    """What the CPU must have to run the code, as named in /proc/cpuinfo."""
    lanes_f32: int
    """Floats in one vector register: 16, 8 or 4."""
    vector_registers: int
    """How many vector registers there are: 16 or 32."""
    l1_bytes: Bytes
    """Size of a core's first-level data cache in bytes."""
    l2_bytes: Bytes
    """Size of the second-level cache in bytes."""
    l1_gbps: Rate
    """Bandwidth of reads from the first-level cache in GB/s (10^9 bytes)."""
    l2_gbps: Rate
    """Bandwidth of reads from the second-level cache in GB/s."""
    l3_gbps: Rate
    """Bandwidth of reads from the third-level cache in GB/s (that of memory, where there is none)."""
    peak_gmacs_f32: Rate
    """Multiply-adds in float32, 10^9 a second."""
    l3_bytes: Annotated[int, between(0, 1 << 34)] = 0
    """Size of the third-level cache in bytes; 0 where it is not known, or holds whatever a network reads."""
    memory_gbps: Annotated[float, between(0, 1e5)] = 0.0
    """Bandwidth of reads from memory in GB/s, of what `l3_bytes` do not hold."""
    mattr: tuple[Attribute, ...] = ()
    """LLVM attributes on top of ``mcpu``, for example ``-prefer-256-bit``."""
    dot: Dot = ""
    """Int8 dot product: ``avx512_vnni``, ``avx_vnni``, ``avx2``, ``sdot``, ``neon`` or ``""`` for none."""
    half: Half = ""
    """Half precision the CPU multiplies faster than fp32: ``f16`` (ARM's FP16 extension) or ``""`` for none."""
    glibc: Glibc = "2.28"
    """Oldest C library the compiled library has to load with."""
    emulate: Annotated[str, matching(f"({_NAME.pattern})?", "a CPU of QEMU")] = ""
    """QEMU's name of this very CPU, or ``""`` where it is not emulated."""
    cores: Annotated[int, between(1, 4096)] = 1
    """CPU cores of the board."""
    call_us: Annotated[float, between(0, 1000)] = 0.0
    """What every kernel takes however little it does, in µs (`edgecsi targets calibrate`)."""
    curve_ns: Annotated[float, between(0, 1000)] = 0.0
    """What a sigmoid or its like takes for an element, in ns (`edgecsi targets calibrate`)."""
    factors: tuple[tuple[str, float], ...] = ()
    """By kernel, its measured over its estimated time on this CPU (`edgecsi targets calibrate`); a table in the file."""

    @property
    def zig_cpu(self) -> str:
        """The same CPU as the ``-mcpu`` argument of zig, which links the library."""
        parts = [self.mcpu, *(attribute[1:] for attribute in self.mattr)]
        signs = ["", *(attribute[0] for attribute in self.mattr)]
        return "".join(s + re.sub(r"[-.]", "_", part) for s, part in zip(signs, parts, strict=True))

    def tvm(self) -> dict[str, Any]:
        """The argument of ``tvm.target.Target``."""
        target: dict[str, Any] = {
            "kind": "llvm",
            "mtriple": self.triple,
            "mcpu": self.mcpu,
            "num-cores": self.cores,
        }
        if self.mattr:
            target["mattr"] = list(self.mattr)
        return target

    def missing_on_this_cpu(self) -> list[str]:
        """Features this target needs and this machine lacks; only its architecture where that differs."""
        if cpu.machine() != self.arch:
            return [self.arch]
        return [name for name in self.features if name not in cpu.features()]


def load(name_or_path: str | Path) -> Target:
    """Read a target.

    Args:
        name_or_path: a name of :func:`list_targets`, or the path of a TOML file (anything with a ``/``
            or the ending ``.toml``).

    Raises:
        TargetError: no such target, or a file with unknown keys, values of the wrong type or out of
            range, a missing value, or a cycle of ``extends``.
    """
    path = _find(str(name_or_path))
    name, fields = _read(path, [])
    return _check(name, fields, path)


def list_targets() -> list[str]:
    """Names of the targets that ship with edgecsi, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def host() -> Target:
    """This machine's exact CPU, the same as ``load("host")``."""
    return load("host")


def _find(name: str, beside: Path | None = None) -> Path:
    """The file of a target's name or path; a file's own ``extends`` may name one beside it."""
    if name.isprintable() and (name.endswith(".toml") or (beside is None and "/" in name)):
        return Path(name) if beside is None else beside / name
    path = _FOLDER / f"{name}.toml"
    if not all(_NAME.fullmatch(part) for part in name.split("/")) or not path.is_file():
        raise TargetError(
            f"there is no target {shown(name)}",
            f"the targets are {', '.join(list_targets())}",
            suggestion(name, list_targets(), "name one of these, or give the path of a .toml file"),
        )
    return path


def _read(path: Path, seen: list[Path]) -> tuple[str, dict[str, Any]]:
    """Name and merged fields of a file, with what it extends, stands for or detects filled in."""
    if path.resolve() in seen or len(seen) > _MAX_EXTENDS:
        chain = " -> ".join(p.name for p in [*seen, path])
        raise TargetError(
            f"{path}: the target extends itself",
            f"the chain of files is {chain}",
            "remove one extends from the chain",
        )
    seen = [*seen, path.resolve()]
    own = _parse(path)
    name = path.stem
    if "alias" in own:
        if len(own) > 1:
            raise _wrong(path, "alias", "an alias has no other keys")
        return _read(_find(_text(path, own, "alias"), path.parent), seen)
    fields: dict[str, Any] = {}
    if "extends" in own:
        _, fields = _read(_find(_text(path, own, "extends"), path.parent), seen)
    if "detect" in own:
        fields = _detect(path, own["detect"], own.get("cpu", {}))
    used = {"extends", "detect", "cpu"} if "detect" in own else {"extends"}
    fields.update((key, value) for key, value in own.items() if key not in used)
    return name, fields


def _parse(path: Path) -> dict[str, Any]:
    fix = "give the path of a target's .toml; `edgecsi targets` lists names"
    data = read_bytes(path, error=TargetError, fix=fix, max_bytes=_MAX_FILE_BYTES)
    return parse_toml(
        data, what=str(path), error=TargetError, fix="correct the file", max_bytes=_MAX_FILE_BYTES
    )


def _detect(path: Path, bases: Any, known_cpus: Any) -> dict[str, Any]:
    """Fields of the first base this machine can run, on top of them what the machine says of itself, and what
    the file knows of that very CPU."""
    if not isinstance(known_cpus, dict) or not all(isinstance(known, dict) for known in known_cpus.values()):
        raise _wrong(path, "cpu", "expected tables [cpu.NAME]")
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases) or not bases:
        raise _wrong(path, "detect", "expected a list of target names")
    candidates = [load(base) for base in bases]
    base = next((target for target in candidates if not target.missing_on_this_cpu()), None)
    if base is None:
        lacking = "; ".join(f"{t.id} needs {', '.join(t.missing_on_this_cpu())}" for t in candidates)
        raise TargetError(
            "this machine's CPU is not supported as a target",
            lacking,
            "build for another --target, or write a target file",
        )
    name, known = cpu.llvm_name(), cpu.LLVM_FEATURE[base.arch]
    present = tuple(feature for feature in known if feature in cpu.features())
    mattr = cpu.llvm_attributes()
    wide = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= set(present)
    if wide:
        mattr.insert(0, "-prefer-256-bit")
    detected = dataclasses.asdict(base) | {
        "mcpu": name or ("x86-64-v3" if base.arch == "x86_64" else "generic"),
        "mattr": mattr,
        "features": list(present),
        "cores": cpu.cores(),
        "emulate": "",
    }
    if base.arch == "x86_64":
        dots = [dot for dot in ("avx512_vnni", "avx_vnni", "avx2") if dot in present]
        detected |= {"lanes_f32": 16 if wide else 8, "vector_registers": 32 if wide else 16, "dot": dots[0]}
    caches = cpu.cache_bytes()
    detected |= {f"l{level}_bytes": caches[level] for level in (1, 2) if level in caches}
    del detected["id"]
    detected.update(known_cpus.get(name, {}))
    return detected


def _check(name: str, fields: dict[str, Any], path: Path) -> Target:
    """Build the target from its fields, every one checked for type and range."""
    if not _NAME.fullmatch(name) or len(name) > 64:
        raise TargetError(
            f"{path}: {name!r} cannot be a target's name",
            "the file's name is the target's name",
            "use letters, digits, dots and dashes",
        )
    if unknown := sorted(
        set(fields) - {field.name for field in dataclasses.fields(Target)} | {"id"} & set(fields)
    ):
        raise TargetError(
            f"{path}: unknown key {', '.join(unknown)}",
            f"a target has the keys alias, extends, detect, cpu, {', '.join(_keys())}",
            "correct the spelling or remove the key",
        )
    if "factors" in fields:
        fields = {**fields, "factors": _factors(path, "factors", fields["factors"])}
    fix = 'correct the file; what is missing may be taken from another target (extends = "rpi4")'
    target = convert({"id": name, **fields}, Target, what=str(path), error=TargetError, fix=fix)
    rules = {
        "triple": (target.triple == TRIPLES[target.arch], f"expected {TRIPLES[target.arch]}"),
        "lanes_f32": (target.lanes_f32 in (4, 8, 16), "expected 4, 8 or 16"),
        "vector_registers": (target.vector_registers in (16, 32), "expected 16 or 32"),
    }
    for key, (holds, expected) in rules.items():
        if not holds:
            raise _wrong(path, key, expected)
    return target


def _keys() -> list[str]:
    return [field.name for field in dataclasses.fields(Target) if field.name != "id"]


def _text(path: Path, fields: dict[str, Any], key: str) -> str:
    value = fields[key]
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise _wrong(path, key, "expected one line of text")
    return value


def _factors(path: Path, key: str, value: Any) -> tuple[tuple[str, float], ...]:
    if isinstance(value, tuple):  # of a target that was checked, which `detect` took
        return value
    if not isinstance(value, dict) or not all(
        re.fullmatch("[a-z0-9_]{1,64}", name) and type(number) in (int, float) and 0.01 <= number <= 100
        for name, number in value.items()
    ):
        raise _wrong(path, key, "expected a table of kernels with numbers from 0.01 to 100")
    return tuple(sorted((name, float(number)) for name, number in value.items()))


def _wrong(path: Path, key: str, expected: str) -> TargetError:
    return TargetError(f"{path}: bad value of {key}", expected, f"correct {key} in the file")
