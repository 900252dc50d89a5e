"""Examine this machine: every part edgecsi needs or can use, and the command that fixes each fault."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgecsi import disk
from edgecsi import target as targets
from edgecsi.errors import EdgecsiError
from edgecsi.progress import Progress

Status = Literal["ok", "missing", "broken"]

_FREE_BYTES_NEEDED = 500 * 1000**2

# Packages of the extras [data] and [peers], and the module that each of them brings.
_EXTRAS = {
    "sionna-no-rt": "sionna",
    "scipy": "scipy",
    "h5py": "h5py",
    "matplotlib": "matplotlib",
    "onnxruntime": "onnxruntime",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "openvino": "openvino",
    "ai-edge-litert": "ai_edge_litert",
    "executorch": "executorch",
}

# Run in a process of its own: with a wrong pair of TVM and tvm-ffi, serialising IR is a segmentation fault.
_TRY_TVM = """
import tvm
from tvm.target import codegen
tvm.ir.load_json(tvm.ir.save_json(tvm.IRModule()))
print(f"LLVM {codegen.llvm_version_major()}")
"""

_TRY_TORCH = """
import torch
torch.export.export(torch.nn.Linear(2, 2).eval(), (torch.zeros(1, 2),))
"""

_C_SOURCE = "#include <math.h>\nint main(void) { volatile double x = 4; return sqrt(x) == 2 ? 0 : 1; }\n"


@dataclass(frozen=True)
class Finding:
    """What became of one part."""

    part: str
    """Name of the part."""
    status: Status
    """``ok``, ``missing`` or ``broken``."""
    needed: bool
    """Whether edgecsi cannot work without it."""
    detail: str
    """Its version, or what is wrong with it."""
    fix: str = ""
    """The command that mends it; empty where it is ok."""

    @property
    def fatal(self) -> bool:
        """A part that is needed and not ok."""
        return self.needed and self.status != "ok"


def examine(progress: Progress | None = None) -> list[Finding]:
    """Look at every part. Takes some seconds, as TVM, torch and the linker are tried for real.

    Args:
        progress: called with (parts done, parts in all, part that comes next).

    Returns:
        The findings, in the order in which the parts are used.
    """
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "Python": _python,
        "CPU": _cpu,
        "packages": _packages,
        "PyTorch": _torch,
        "TVM": _tvm,
        "temporary files": _temporary,
        "cache": _cache,
        "linker": _linker,
        "emulator": _emulator,
        "SSH": _ssh,
        "extras": _extras,
        "this folder": _here,
    }
    findings: list[Finding] = []
    for done, (name, look) in enumerate(parts.items()):
        if progress is not None:
            progress(done, len(parts), name)
        try:
            findings += look()
        except OSError as error:
            findings.append(Finding(name, "broken", True, str(error), "see what was found above it"))
        except EdgecsiError as error:
            findings.append(Finding(name, "broken", True, f"{error.what}: {error.why}", error.fix))
    return findings


def _python() -> Iterator[Finding]:
    fine = sys.version_info >= (3, 11)
    fix = "" if fine else "install Python 3.11 or newer and make a new virtual environment with it"
    yield Finding("python", "ok" if fine else "broken", True, platform.python_version(), fix)


def _cpu() -> Iterator[Finding]:
    try:
        host = targets.host()
    except EdgecsiError as error:
        yield Finding(
            "cpu", "broken", False, error.why, "build for another machine with --target (edgecsi targets)"
        )
        return
    detail = f"{host.mcpu}, {host.lanes_f32} floats a vector, int8 dot product: {host.dot or 'none'}"
    yield Finding("cpu", "ok", False, detail)


def _packages() -> Iterator[Finding]:
    """What edgecsi itself requires, by version; importing torch and TVM is tried later."""
    if not _requirements():
        fix = f"{_pip()} install -e . in the folder of pyproject.toml"
        yield Finding("edgecsi", "broken", True, "it runs from a folder and is not installed", fix)
    for requirement in _requirements():
        if "extra ==" in requirement:
            continue
        name, wanted = _split(requirement)
        yield _installed(name, wanted, needed=True)


def _torch() -> Iterator[Finding]:
    failed = _try_python(_TRY_TORCH)[1]
    fix = f"{_pip()} install --force-reinstall torch==2.13.0"
    yield Finding(
        "torch.export", "broken" if failed else "ok", True, failed or "works", fix if failed else ""
    )


def _tvm() -> Iterator[Finding]:
    output, failed = _try_python(_TRY_TVM)
    pins = [f"{n}{w}" for n, w in map(_split, _requirements()) if "tvm" in n]
    detail = f"serialising IR: {failed}" if failed else f"serialises IR, {output}"
    fix = f"{_pip()} install --force-reinstall --no-deps {' '.join(pins)}"
    yield Finding("tvm + tvm-ffi", "broken" if failed else "ok", True, detail, fix if failed else "")


def _temporary() -> Iterator[Finding]:
    try:
        folder = Path(tempfile.gettempdir())
    except OSError:
        fix = "make room on the disk, or export TMPDIR=FOLDER, one that can be written"
        yield Finding("temporary files", "broken", True, "no temporary folder can be written", fix)
        return
    asked = os.environ.get("TMPDIR")
    other = f", as {asked} (TMPDIR) cannot be written" if asked and Path(asked) != folder else ""
    noexec = ", mounted noexec: what is run lies below the cache instead" if disk.is_noexec(folder) else ""
    yield Finding("temporary files", "ok", True, f"{folder}{other}{noexec}")


def _here() -> Iterator[Finding]:
    """Where a bundle goes that is built without ``-o``."""
    folder, fix = Path.cwd(), "build with -o in another folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("this folder", "broken", False, f"{folder} cannot be written", fix)
    elif disk.is_noexec(folder):
        yield Finding(
            "this folder", "broken", False, f"{folder} is mounted noexec: no bundle runs in it", fix
        )
    else:
        yield Finding("this folder", "ok", False, str(folder))


def _linker() -> Iterator[Finding]:
    for arch, triple in targets.TRIPLES.items():
        with disk.scratch(runs=True) as folder:
            failed = _link(folder, f"{triple}.2.28", ["-shared", "-fPIC", "-lm"])
        fix = f"{_pip()} install --force-reinstall ziglang" if failed else ""
        yield Finding(
            f"linker for {arch}", "broken" if failed else "ok", True, failed or "links with zig", fix
        )


def _emulator() -> Iterator[Finding]:
    boards = {
        t.emulate: t.id
        for name in targets.list_targets()
        if name != "host" and (t := targets.load(name)).emulate
    }
    qemu = shutil.which("qemu-aarch64")
    if qemu is None:
        lost = f"without it bundles for {', '.join(sorted(boards.values()))} cannot be tried here"
        yield Finding("qemu-aarch64", "missing", False, lost, "sudo apt-get install qemu-user")
        return
    with disk.scratch(runs=True) as folder:
        if failed := _link(folder, "aarch64-linux-musl", ["-static"]):
            fix = "see to the linker; if that is ok, this machine was too busy: try again"
            yield Finding(
                "qemu-aarch64", "broken", False, f"not tried, as nothing could be compiled: {failed}", fix
            )
            return
        for cpu in boards:
            failed = failed or _run([qemu, "-cpu", cpu, str(folder / "out")], timeout=30)[1]
    detail = f"runs code for {', '.join(sorted(boards))}"
    fix = "sudo apt-get install --reinstall qemu-user" if failed else ""
    yield Finding("qemu-aarch64", "broken" if failed else "ok", False, failed or detail, fix)


def _ssh() -> Iterator[Finding]:
    if shutil.which("ssh") is None:
        lost = "bundles cannot be run on, or deployed to, other machines"
        yield Finding("ssh", "missing", False, lost, "sudo apt-get install openssh-client")
        return
    said, failed = _run(["ssh", "-V"], timeout=10)
    yield Finding("ssh", "broken" if failed else "ok", False, failed or said, "")


def _extras() -> Iterator[Finding]:
    wanted = dict(map(_split, _requirements()))
    for name, module in _EXTRAS.items():
        yield _installed(name, wanted.get(name, ""), False, module)


def _cache() -> Iterator[Finding]:
    try:
        from edgecsi.disk import cache_dir
    except ImportError:  # numpy is missing, as an earlier finding says
        return
    folder = cache_dir()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fix = f"mkdir -p '{folder}' && chmod u+rwx '{folder}', or set EDGECSI_CACHE to another folder"
        yield Finding("cache", "broken", True, f"{folder} is not writable", fix)
        return
    if disk.is_noexec(existing):
        fix = "set EDGECSI_CACHE to a folder that is not mounted noexec"
        yield Finding("cache", "broken", True, f"{folder} is mounted noexec, and programs lie in it", fix)
        return
    yield Finding("cache", "ok", True, str(folder))
    free = shutil.disk_usage(existing).free
    fine = free >= _FREE_BYTES_NEEDED
    fix = (
        ""
        if fine
        else f"free some space on the disk of {existing}, or set EDGECSI_CACHE to a folder elsewhere"
    )
    yield Finding("disk", "ok" if fine else "broken", True, f"{free / 1e9:.1f} GB free for {folder}", fix)


def _installed(name: str, wanted: str, needed: bool, module: str = "") -> Finding:
    """Whether a package is there in a version that will do (and its module can be found)."""
    fix = f"{_pip()} install '{name}{wanted}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", needed, "not installed", fix)
    if module and importlib.util.find_spec(module) is None:
        return Finding(name, "broken", needed, f"{version} is installed but has no module {module}", fix)
    if not satisfies(version, wanted):
        return Finding(name, "broken", needed, f"{version} is installed, {wanted} is needed", fix)
    return Finding(name, "ok", needed, version)


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version fulfils a requirement such as ``>=2.13,<2.14`` or ``==0.27.0.post1``.

    Only the operators that pyproject.toml uses are known; a local part (``+cpu``) does not count.
    """
    have = _numbers(version)
    for clause in filter(None, wanted.split(",")):
        match = re.fullmatch(r"(==|>=|<)(.+)", clause.strip())
        if match is None:
            raise ValueError(f"unknown version requirement {wanted!r}")
        bound = _numbers(match[2])
        width = max(len(have), len(bound))
        a, b = (v + (0,) * (width - len(v)) for v in (have, bound))
        if not {"==": a == b, ">=": a >= b, "<": a < b}[match[1]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))


def _requirements() -> list[str]:
    """What edgecsi's own metadata asks for; empty if it is not installed."""
    try:
        return importlib.metadata.requires("edgecsi") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _split(requirement: str) -> tuple[str, str]:
    """``torch<2.14,>=2.13; extra == "x"`` to (``torch``, ``<2.14,>=2.13``)."""
    match = re.match(r"([A-Za-z0-9._-]+)\s*([^;]*)", requirement)
    assert match is not None, requirement
    return match[1], match[2].strip().strip("()").replace(" ", "")


def _try_python(source: str) -> tuple[str, str]:
    return _run([sys.executable, "-W", "ignore", "-c", source], timeout=120)


def _run(command: list[str], timeout: float, **environment: str) -> tuple[str, str]:
    """Run a command with this environment besides; its output, and what went wrong in one line (empty if nothing did)."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            errors="replace",
            env=os.environ | environment,
        )
    except subprocess.TimeoutExpired:
        return "", f"did not end within {timeout:.0f} s"
    except OSError as error:
        return "", str(error)
    if done.returncode < 0:
        return "", f"crashed with signal {-done.returncode}"
    if done.returncode > 0:
        lines = done.stderr.strip().splitlines()
        return "", lines[-1][:200] if lines else f"ended with exit code {done.returncode}"
    return done.stdout.strip() or done.stderr.strip(), ""


def _link(folder: Path, triple: str, options: list[str]) -> str:
    """Compile and link a small program to ``folder/out``, with zig's caches where a build has them; what went wrong, or
    an empty string."""
    from edgecsi.codegen import zig

    (folder / "main.c").write_text(_C_SOURCE)
    command = [sys.executable, "-m", "ziglang", "cc", "-target", triple, str(folder / "main.c")]
    return _run([*command, "-o", str(folder / "out"), *options], timeout=300, **zig.caches())[1]


def _pip() -> str:
    return f"{sys.executable} -m pip"
