"""How many cycles a hot loop takes: an estimate by LLVM's machine code analyser, beside instructions that are counted.

``llvm-mca`` plays the pipeline of a CPU on a piece of assembly, with every load in the L1 cache. It knows nothing of
memory, of branches and of the rest of the kernel: an estimate, no measurement.
"""

from __future__ import annotations

import re
import shutil
import subprocess

from edgecsi.codegen.compile import compile_module
from edgecsi.errors import ToolchainError
from edgecsi.kernels.base import Kernel, Knobs
from edgecsi.ops.operators import Op
from edgecsi.target import Target

TOOLS = tuple(f"llvm-mca-{version}" for version in range(22, 15, -1))
"""Newest first; before 16 there is no model of Neoverse N1."""
MODELS = {"cortex-a76": "neoverse-n1"}
"""LLVM describes the Cortex-A76 by its server sibling, and otherwise schedules it as a Cortex-A57."""
ITERATIONS = 100


def an_instruction(kernel: Kernel, op: Op, target: Target, knobs: Knobs) -> float | None:
    """Cycles that an instruction of a kernel's hot loop takes, estimated; None without such a loop, or llvm-mca."""
    try:
        tool = find_tool()
        assembly = compile_module({"kernel": kernel.emit(op, target, knobs)}, target).inspect_source("asm")
        body = hot_loop(assembly)
        if not multiply_adds(body):
            return None
        return analyse(tool, MODELS.get(target.mcpu, target.mcpu), body) / len(body)
    except ToolchainError:
        return None


def find_tool() -> str:
    """The newest llvm-mca there is.

    Raises:
        ToolchainError: none is installed.
    """
    for name in TOOLS:
        if shutil.which(name):
            return name
    raise ToolchainError(
        "cycles cannot be estimated", "llvm-mca of LLVM 16 or newer is missing", "apt-get install llvm-16"
    )


def hot_loop(assembly: str) -> list[str]:
    """The instructions of the innermost loop (no other loop in it) that is there to multiply: it has the most
    multiply-adds, and the least beside them, of which Winograd's transforms have much; empty if no loop has any.

    Args:
        assembly: AArch64, as LLVM prints it.
    """
    lines = [line.split("//")[0].strip() for line in assembly.splitlines()]
    labels = {line[:-1]: index for index, line in enumerate(lines) if line.endswith(":")}
    backward: list[tuple[int, int]] = []
    for index, line in enumerate(lines):
        branch = re.fullmatch(r"(?:b|b\.\w+|cbn?z|tbn?z)\s+(?:.*,\s*)?(\.L\w+)", line)
        if branch and labels.get(branch[1], index) < index:
            backward.append((labels[branch[1]], index))
    bodies = [
        [line for line in lines[begin : end + 1] if line and not line.startswith(".")]
        for begin, end in backward
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in backward)
    ]
    return max(bodies, key=lambda body: multiply_adds(body) ** 3 / len(body) ** 2, default=[])


_WIDENING = re.compile(r"(?:[su]mull2?|[su]mlal2?)\s+v\d+\.(8h|4s)")
_DOT = re.compile(r"[su]dot\s+v\d+\.(4s|2s)")
_PLAIN = re.compile(r"(?:mla|fmla)\s+v\d+\.(16b|8h|4s)")


def multiply_adds(instructions: list[str]) -> int:
    """Multiply-adds of a piece of AArch64 code, by the lanes of its vector instructions."""
    total = 0
    for line in instructions:
        if found := _DOT.match(line):
            total += 4 * int(found[1][:-1])
        elif found := _WIDENING.match(line) or _PLAIN.match(line):
            total += int(found[1][:-1])
    return total


def analyse(tool: str, mcpu: str, instructions: list[str]) -> float:
    """Cycles of one pass of a loop body.

    Raises:
        ToolchainError: the tool failed.
    """
    # Where branches lead is of no interest, and the labels are not in the piece.
    straight = [re.sub(r"\.L\w+$", "0", line) for line in instructions]
    command = [tool, "-mtriple=aarch64", f"-mcpu={mcpu}", f"-iterations={ITERATIONS}"]
    try:
        said = subprocess.run(
            [*command, "-instruction-info=0", "-resource-pressure=0"],
            input="\n".join(straight) + "\n",
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        return int(re.findall(r"Total Cycles:\s+(\d+)", said)[0]) / ITERATIONS
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise ToolchainError(f"{tool} failed", said.strip()[:300], "report this as a bug") from None
