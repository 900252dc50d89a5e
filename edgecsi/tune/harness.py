"""Run one kernel by itself, natively or under QEMU: for its tests and for tuning."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi import disk
from edgecsi.codegen.compile import compile_object
from edgecsi.codegen.zig import zig_cc
from edgecsi.errors import DeviceError, ToolchainError
from edgecsi.kernels.base import Kernel, Knobs
from edgecsi.ops.operators import Op
from edgecsi.target import Target


@dataclass
class Case:
    """A kernel with its operator and inputs (logical arrays, as `op.inputs`)."""

    kernel: Kernel
    op: Op
    inputs: Sequence[NDArray[Any]]
    knobs: Knobs | None = None

    def buffers(self, target: Target) -> list[NDArray[Any]]:
        """Every parameter of the function; the output is the one filled with junk, so a missed store shows."""
        knobs = self.knobs if self.knobs is not None else self.kernel.knobs(self.op, target)
        memory = [lay.store(np.asarray(v)) for lay, v in zip(self.op.inputs, self.inputs, strict=True)]
        memory += [np.ascontiguousarray(c).reshape(-1) for c in self.kernel.constants(self.op, target, knobs)]
        self.output = len(memory)
        junk = np.full(self.op.y.size, 77, self.op.y.dtype)
        scratch = self.kernel.scratch(self.op, target, knobs)
        return [*memory, junk, *([np.full(scratch, 77, np.uint8)] if scratch else [])]


def compile_cases(cases: Sequence[Case], target: Target) -> bytes:
    """One object with the functions ``k0``, ``k1``, …"""
    functions = {}
    for i, case in enumerate(cases):
        knobs = case.knobs if case.knobs is not None else case.kernel.knobs(case.op, target)
        functions[f"k{i}"] = case.kernel.emit(case.op, target, knobs)
    return compile_object(functions, target)


def run_cases(
    cases: Sequence[Case], target: Target, *, repeat: int = 0
) -> list[tuple[NDArray[Any], NDArray[Any], float]]:
    """Outputs of all cases as (memory, logical array, seconds per call).

    Native if this CPU can run the target, else under QEMU with the target's exact CPU. Seconds are 0 unless
    `repeat` > 0 (native only): the minimum over `repeat` blocks.

    Raises:
        ToolchainError: QEMU is needed and missing. DeviceError: a kernel crashed or did not end.
    """
    everything = [case.buffers(target) for case in cases]
    with disk.scratch(runs=True) as where:
        (where / "kernels.o").write_bytes(compile_cases(cases, target))
        if target.missing_on_this_cpu():
            _run_emulated(everything, target, where)
            seconds = [0.0] * len(cases)
        else:
            seconds = _run_native(cases, everything, where, repeat)
    results = []
    for case, memory, spent in zip(cases, everything, seconds, strict=True):
        results.append((memory[case.output], case.op.y.read(memory[case.output]), spent))
    return results


def _run_native(
    cases: Sequence[Case], everything: list[list[NDArray[Any]]], where: Path, repeat: int
) -> list[float]:
    zig_cc(["-shared", "-o", where / "k.so", where / "kernels.o", "-lm"])
    library = ctypes.CDLL(str(where / "k.so"))
    seconds = []
    for i in range(len(cases)):
        function = getattr(library, f"k{i}")
        function.restype = None
        aligned = [_aligned(a) for a in everything[i]]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in aligned]
        function(*pointers)
        everything[i][:] = aligned
        best = 0.0
        if repeat:
            number = 1
            while True:
                start = time.perf_counter()
                for _ in range(number):
                    function(*pointers)
                spent = time.perf_counter() - start
                if spent > 2e-3:
                    break
                number *= 2
            times = []
            for _ in range(repeat):
                start = time.perf_counter()
                for _ in range(number):
                    function(*pointers)
                times.append((time.perf_counter() - start) / number)
            best = min(times)
        seconds.append(best)
    return seconds


def _aligned(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that starts at a multiple of 64 bytes, as weights and workspace do in a library."""
    room = np.empty(array.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64
    view = room[start : start + array.nbytes].view(array.dtype)
    view[:] = array
    return view


def _run_emulated(everything: list[list[NDArray[Any]]], target: Target, where: Path) -> None:
    arch = "aarch64" if target.arch == "aarch64" else "x86_64"
    qemu = shutil.which(f"qemu-{arch}")
    if qemu is None:
        raise ToolchainError(
            f"{target.id} cannot be emulated", f"qemu-{arch} is not installed", "apt-get install qemu-user"
        )
    lines = ["#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>"]
    body, offset = [], 0
    for i, memory in enumerate(everything):
        lines.append(f"void k{i}({', '.join(['void *'] * len(memory))});")
        places = []
        for array in memory:
            offset = -(-offset // 64) * 64
            places.append(f"m + {offset}")
            offset += array.nbytes
        body.append(f"  k{i}({', '.join(places)});")
    lines += [
        "int main(int argc, char **argv) {",
        f"  size_t n = {max(offset, 1)};",
        '  char *m = aligned_alloc(64, (n + 127) / 64 * 64); FILE *f = fopen(argv[1], "rb");',
        "  if (argc < 2 || !m || !f || fread(m, 1, n, f) != n) return 1;",
        "  fclose(f);",
        *body,
        '  f = fopen(argv[1], "wb"); if (!f || fwrite(m, 1, n, f) != n) return 1;',
        "  return fclose(f); }",
    ]
    (where / "main.c").write_text("\n".join(lines) + "\n")
    zig_cc(
        ["-O1", "-static", "-o", where / "run", where / "main.c", where / "kernels.o", "-lm"],
        triple=f"{arch}-linux-musl",
    )
    image = bytearray(max(offset, 1))
    spots, at = [], 0
    for memory in everything:
        for array in memory:
            at = -(-at // 64) * 64
            image[at : at + array.nbytes] = array.tobytes()
            spots.append((array, at))
            at += array.nbytes
    (where / "memory").write_bytes(image)
    try:
        done = subprocess.run(
            [qemu, "-cpu", target.emulate or "max", str(where / "run"), str(where / "memory")],
            capture_output=True,
            timeout=600,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            "a kernel did not end", f"emulating {target.id} took over 600 s", "report this"
        ) from error
    if done.returncode:
        why = (
            "illegal instruction"
            if done.returncode in (-4, 132)
            else done.stderr.decode(errors="replace")[-300:]
        )
        raise DeviceError(
            f"a kernel crashed on emulated {target.id}", f"status {done.returncode}: {why}", "report this"
        )
    image = bytearray((where / "memory").read_bytes())
    for array, at in spots:
        array[:] = np.frombuffer(image, array.dtype, array.size, at)
