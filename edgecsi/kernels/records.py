"""What tuning measured, line by line: written by `edgecsi.tune`, read by `edgecsi.lower`.

A file of records is append-only JSON lines. Each line carries a checksum and is flushed to the disk before the next is
measured, so whatever ends a search, a torn last line is all that can be lost; a reader skips what it cannot verify and
says how many lines that were. Writers lock the file, so several may share one.

There are two kinds: a **trial** is one setting measured (or failed), a **choice** is what a finished search settled on
for a workload. Only choices change a build, and only while they are true: of the same target and CPU, the same TVM,
and a kernel that still emits the very code that was measured.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from edgecsi import disk
from edgecsi.errors import InputError, ToolchainError
from edgecsi.kernels.base import Kernel, Knobs
from edgecsi.kernels.variants import all_kernels
from edgecsi.kernels.workload import code, workload
from edgecsi.ops.operators import Op
from edgecsi.schema import NonNegative, convert, parse_json
from edgecsi.target import Target

SCHEMA = 1
SUFFIX = ".jsonl"
SHIPPED = Path(__file__).parents[1] / "records"
MAX_LINE = 1 << 16
MAX_BYTES = 1 << 28
_TRIAL = b'"kind":"trial"'  # as a line is written; within a text, quotation marks are escaped

Status = Literal["ok", "wrong", "crashed", "hung", "refused"]
Means = Literal["measured", "counted"]
_UNITS: dict[Means, str] = {"measured": "microseconds", "counted": "million instructions"}
_T4: dict[Status, str] = {
    "ok": "correct", "wrong": "correctness", "crashed": "runtime", "hung": "timeout", "refused": "constraints",
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One line.

    Attributes:
        kind: ``trial`` or ``choice``.
        workload: key of the layer's work, see :func:`edgecsi.kernels.workload.workload`; ``layer`` is its name where
            it was met, for people.
        kernel, knobs, code: what was run, and the key of the code it emitted.
        target, cpu, tvm: where: target, LLVM's name of the CPU, version of TVM.
        means: ``measured`` on a CPU, ``us`` being microseconds; or ``counted`` under emulation, ``us`` being the
            millions of instructions of a call.
        us: median; 0 unless ``status`` is ``ok``.
        default_us: of a choice, the time of the default measured in turns with it.
        status: of a trial.
        why: what went wrong, or why a choice is the default after all.
        date: UTC, ISO 8601.
    """

    kind: Literal["trial", "choice"]
    workload: str
    layer: str
    kernel: str
    knobs: Mapping[str, int]
    code: str
    target: str
    cpu: str
    tvm: str
    means: Means
    us: NonNegative
    default_us: NonNegative = 0.0
    status: Status = "ok"
    why: str = ""
    date: str = ""
    schema: int = SCHEMA

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that name the record in a manifest."""
        return checksum(asdict(self))[:8]

    @property
    def setting(self) -> tuple[str, str, tuple[tuple[str, int], ...]]:
        """Workload, kernel and knobs: what a trial tried."""
        return self.workload, self.kernel, tuple(sorted(self.knobs.items()))


@dataclass
class Records:
    """The records of one or more files.

    Attributes:
        torn: lines that could not be verified, which a killed writer or a bad disk leaves behind.
    """

    lines: list[Record] = field(default_factory=list)
    torn: int = 0

    def __post_init__(self) -> None:
        self._choices: dict[str, list[Record]] = {}
        for record in self.lines:
            if record.kind == "choice":
                self._choices.setdefault(record.workload, []).append(record)

    def choice(self, op: Op, target: Target) -> tuple[Kernel, Knobs, Record] | None:
        """The kernel that a search settled on for this work on this target, if that is still true.

        Measured choices come before counted ones, later before earlier.
        """
        if not self._choices:
            return None
        found = [r for r in self._choices.get(workload(op), []) if fits(r, target)]
        found.reverse()
        for record in sorted(found, key=lambda r: r.means != "measured"):
            kernel = all_kernels().get(record.kernel)
            if kernel is None or kernel.op is not type(op) or kernel.refuses(op, target):
                continue
            try:
                if code(kernel, op, target, record.knobs) == record.code:
                    return kernel, dict(record.knobs), record
            except (ValueError, KeyError):
                continue  # knobs of another version of the kernel
        return None

    def trials(self, target: Target, cpu: str, means: Means) -> dict[tuple[Any, ...], Record]:
        """Settings tried before, in the same circumstances; the latest of each."""
        return {
            record.setting: record
            for record in self.lines
            if record.kind == "trial"
            and (record.target, record.cpu, record.means) == (target.id, cpu, means)
            and record.tvm == version("apache-tvm")
        }


def fits(record: Record, target: Target) -> bool:
    """Whether a record was made for this target: its name, its CPU unless the target is for many, and today's TVM."""
    if record.target != target.id or record.tvm != version("apache-tvm"):
        return False
    return record.cpu == target.mcpu or target.mcpu.startswith("x86-64")


def read_records(paths: Iterable[Path], trials: bool = True) -> Records:
    """The records of all these files; a missing file holds none.

    Args:
        trials: without them, their lines are not even verified: a file holds a dozen for every choice, and verifying
            thousands would take half of a small network's build.

    Raises:
        InputError: a file cannot be read, or is no file of records at all.
    """
    lines: list[Record] = []
    torn = 0
    for path in paths:
        found, bad = _read(path, trials)
        lines += found
        torn += bad
    return Records(lines, torn)


def append(path: Path, records: Iterable[Record]) -> None:
    """Write records behind those of a file, through to the disk.

    A last line that was torn is ended first, so that nothing is written onto it.

    Raises:
        ToolchainError: the file cannot be written.
    """
    data = b"".join(_line(record) for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                data = b"\n" + data
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise _unwritable(path, error) from error


def own_file(target: Target, cpu: str) -> Path:
    """Where a user's records of a target and CPU lie: ``$EDGECSI_DATA``, else ``$XDG_DATA_HOME/edgecsi``, else
    ``~/.local/share/edgecsi``, there ``records/<target>-<cpu>.jsonl``."""
    return data_dir() / "records" / f"{target.id}-{_slug(cpu)}{SUFFIX}"


def data_dir() -> Path:
    """The folder of what a user made and does not want to lose."""
    return disk.own_folder(".local/share", "XDG_DATA_HOME", "EDGECSI_DATA")


def all_files() -> list[Path]:
    """The files of records that ship, and the user's own."""
    return [p for folder in (SHIPPED, data_dir() / "records") for p in sorted(folder.glob(f"*{SUFFIX}"))]


def known_records(target: Target, files: Iterable[Path] = (), trials: bool = False) -> Records:
    """All records that a build for a target may use: those that ship, the user's own, and the files named; the rest as
    for :func:`read_records`."""
    return read_records([*(p for p in all_files() if p.name.startswith(f"{target.id}-")), *files], trials)


def current(lines: Sequence[Record]) -> list[Record]:
    """What is still of use: records of today's TVM, of equal choices the latest."""
    kept: dict[tuple[Any, ...], Record] = {}
    for record in lines:
        if record.tvm == version("apache-tvm"):
            one = () if record.kind == "choice" else record.setting
            kept[record.kind, record.target, record.cpu, record.means, record.workload, one] = record
    return list(kept.values())


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Make a file hold just these records, whole or not at all; errors as for :func:`edgecsi.disk.whole`."""
    disk.write(path, b"".join(map(_line, records)))


def as_t4(lines: Sequence[Record]) -> dict[str, Any]:
    """Trials in the T4 results format, version 1.0.0 (Auto-Tuning in High-Performance Computing community)."""
    results = [
        {
            "timestamp": r.date,
            "configuration": {"kernel": r.kernel, **r.knobs},
            "workload": {"id": r.workload, "layer": r.layer, "target": r.target, "cpu": r.cpu},
            "times": {"runtimes": [r.us]},
            "invalidity": _T4[r.status],
            "correctness": int(r.status == "ok"),
            "measurements": [{"name": "time", "value": r.us, "unit": _UNITS[r.means]}],
            "objectives": ["time"],
        }
        for r in lines
        if r.kind == "trial"
    ]
    return {"schema_version": "1.0.0", "results": results}


def checksum(tree: Mapping[str, Any]) -> str:
    """Of a record's fields: 16 hexadecimal digits of the SHA-256 of their canonical JSON."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unwritable(path: Path, error: OSError) -> ToolchainError:
    return ToolchainError(
        f"{path} cannot be written",
        str(error.strerror or error),
        "free some space, or name another file with --records; what was measured before is kept",
    )


def _line(record: Record) -> bytes:
    tree = asdict(record)
    return (
        json.dumps({"sum": checksum(tree), **tree}, separators=(",", ":"), allow_nan=False) + "\n"
    ).encode()


def _read(path: Path, trials: bool) -> tuple[list[Record], int]:
    try:
        if not path.exists():
            return [], 0
        if path.stat().st_size > MAX_BYTES:
            larger = f"it is larger than {MAX_BYTES >> 20} MB"
            raise InputError(f"{path} is no file of records", larger, "name another")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read", str(error.strerror or error), "check the path") from error
    found, torn = [], 0
    lines = [line for line in raw.split(b"\n") if line.strip()]
    for line in lines:
        if not trials and _TRIAL in line:
            continue
        record = _parse(line) if len(line) <= MAX_LINE else None
        if record is None:
            torn += 1
        else:
            found.append(record)
    if torn == len(lines) and len(raw) > MAX_LINE:
        raise InputError(f"{path} is no file of records", "no line of it can be verified", "name another")
    return found, torn


def _parse(line: bytes) -> Record | None:
    """A line as a record; None if it cannot be verified or is none."""
    try:
        tree = parse_json(line, what="a record", error=InputError)
        if not isinstance(tree, dict) or tree.pop("sum", None) != checksum(tree):
            return None
        record = convert(tree, Record, what="a record", error=InputError)
    except (InputError, ValueError):
        return None
    return record if record.schema == SCHEMA else None


def _slug(cpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-") or "cpu"
