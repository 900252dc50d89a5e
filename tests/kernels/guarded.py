"""Kernels between guard pages, natively or under QEMU: `guarded.c` says how."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.codegen.zig import zig_cc
from edgecsi.device import toolchain
from edgecsi.target import Target
from edgecsi.tune.harness import Case, compile_cases

KINDS = ("READ", "OUTPUT", "SCRATCH")


def run_guarded(cases: Sequence[Case], target: Target) -> list[NDArray[Any]]:
    """The memory of every case's output.

    Raises:
        AssertionError: a kernel reads or writes beside a buffer, writes what it should only read, or its answer depends
            on where its buffers lie; begins with the number of the case.
    """
    everything = [case.buffers(target) for case in cases]
    shapes, kernels, calls = [], [], []
    for number, (case, memory) in enumerate(zip(cases, everything, strict=True)):
        for b, array in enumerate(memory):
            kind = KINDS[0 if b < case.output else 1 if b == case.output else 2]
            shapes.append(f"{{{array.nbytes}, {array.itemsize}, {kind}}}")
        arguments = ", ".join(f"p[{b}]" for b in range(len(memory)))
        calls.append(f"void k{number}({', '.join(['void *'] * len(memory))});")
        calls.append(f"static void call{number}(void **p) {{ k{number}({arguments}); }}")
        kernels.append(f"{{{len(memory)}, call{number}}}")
    source = [
        f'#include "{Path(__file__).with_suffix(".h")}"', *calls,
        f"const struct shape shapes[] = {{{', '.join(shapes)}}};",
        f"const struct kernel kernels[] = {{{', '.join(kernels)}}};",
        f"const int count = {len(cases)};",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        (where / "kernels.o").write_bytes(compile_cases(cases, target))
        (where / "main.c").write_text("\n".join(source) + "\n")
        given = [
            array for case, memory in zip(cases, everything, strict=True) for array in memory[: case.output]
        ]
        (where / "memory").write_bytes(b"".join(array.tobytes() for array in given))
        zig_cc(
            ["-static", "-O1", "-o", where / "run", Path(__file__).with_suffix(".c"), where / "main.c",
             where / "kernels.o", "-lm"],
            triple=f"{target.arch}-linux-musl",
        )  # fmt: skip
        emulated = target.missing_on_this_cpu()
        command = [toolchain.qemu(target.arch), "-cpu", target.emulate or "max"] if emulated else []
        done = subprocess.run(
            [*command, where / "run", where / "memory", where / "result"],
            capture_output=True, timeout=600, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode(errors="replace") or f"exit code {done.returncode}"
        result = (where / "result").read_bytes()
    outputs, at = [], 0
    for case in cases:
        size = case.op.y.nbytes
        outputs.append(np.frombuffer(result, case.op.y.dtype, case.op.y.size, at).copy())
        at += size
    return outputs
