"""One shared library per bundle: kernels, weights and driver, linked with nothing but libc and libm."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi import disk
from edgecsi.codegen.child import PATIENCE, ChildFailed, in_child
from edgecsi.codegen.compile import compile_object
from edgecsi.codegen.interface import C_TYPES, environment
from edgecsi.codegen.program import ALIGN, Call, Place, PlannedEntry
from edgecsi.codegen.target_features import feature_bits
from edgecsi.codegen.zig import zig_cc
from edgecsi.errors import ToolchainError
from edgecsi.target import Target

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

# A call takes at most 32 KB from the stack: this much workspace, the frames of kernels (up to 10 KB) and the driver's.
STACK_WORKSPACE = 20 << 10


@dataclass
class BatchLoop:
    """Neighbouring calls that run `count` times, for one sample after the other: (number, C statement)."""

    count: int
    calls: list[tuple[int, str]]


@dataclass
class Linked:
    """What goes into the object file, each kernel and each constant once.

    By its name: a function, the count of its arguments, the first layer that calls it.
    """

    functions: dict[str, PrimFunc] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    weights: bytearray = field(default_factory=bytearray)
    loops: dict[str, list[BatchLoop]] = field(default_factory=dict)


def gather(entries: Sequence[PlannedEntry]) -> Linked:
    """Merge entries: the same kernel or constant used twice is stored once; constants lie in call order."""
    from tvm_ffi import structural_hash

    linked = Linked()
    symbols: dict[tuple[str, int], str] = {}
    offsets: dict[tuple[str, bytes], int] = {}

    def constant(array: np.ndarray[Any, Any]) -> int:
        data = np.ascontiguousarray(array).tobytes()
        key = (str(array.dtype), data)
        if key not in offsets:
            linked.weights.extend(bytes(-len(linked.weights) % ALIGN))
            offsets[key] = len(linked.weights)
            linked.weights.extend(data)
        return offsets[key]

    def pointer(call: Call, place: Place) -> str:
        step = f" + s * {place.stride}" if call.repeat > 1 and place.stride else ""
        match place.kind:
            case "workspace":
                return f"w + {place.offset}{step}"
            case "constant":
                return f"c + {constant(call.constants[place.at])}"
            case "in":
                return f"(const char *)in{place.at} + {place.offset}{step}"
            case _:
                return f"(char *)out{place.at} + {place.offset}{step}"

    for entry in entries:
        loops: list[BatchLoop] = []
        segment = -1
        for number, call in enumerate(entry.calls):
            key = (call.kernel, int(structural_hash(call.function)))
            if key not in symbols:
                symbols[key] = f"k{len(symbols)}_{call.kernel}"
                linked.functions[symbols[key]] = call.function
                linked.counts[symbols[key]] = len(call.arguments)
                linked.layers[symbols[key]] = call.layer
            pointers = ", ".join(pointer(call, p) for p in call.arguments)
            comment = "".join(ch if ch.isalnum() or ch in "._- " else "_" for ch in call.layer)
            if call.segment != segment:
                loops.append(BatchLoop(call.repeat, []))
                segment = call.segment
            loops[-1].calls.append((number, f"{symbols[key]}({pointers}); /* {comment} */"))
        linked.loops[entry.name] = loops
    return linked


def build_library(
    name: str, entries: Sequence[PlannedEntry], linked: Linked, manifest: bytes, target: Target
) -> bytes:
    """Compile and link.

    Args:
        name: C identifier, the prefix of every symbol. manifest: JSON that ``<name>_manifest()`` returns.

    Raises:
        ToolchainError: the compiler or the linker failed, or there is no room for temporary files.
    """
    driver = _driver(name, entries, linked, target)
    blob = (
        '.section .note.GNU-stack,""\n'
        '.section .rodata.edgecsi,"a"\n.balign 64\n.globl edgecsi_weights\n.hidden edgecsi_weights\n'
        'edgecsi_weights:\n.incbin "weights.bin"\n.byte 0\n.balign 8\n'
        ".globl edgecsi_manifest\n.hidden edgecsi_manifest\n"
        'edgecsi_manifest:\n.incbin "manifest.json"\n.byte 0\n'
    )
    soname = f"lib{name.replace('_', '-')}.so"
    exports = f"{{ global: {name}_*; __tvm_ffi_*; local: *; }};\n"
    try:
        with disk.scratch() as where:
            (where / "kernels.o").write_bytes(_kernels(linked, target))
            (where / "weights.bin").write_bytes(linked.weights)
            (where / "manifest.json").write_bytes(manifest)
            (where / "blob.S").write_text(blob)
            (where / "driver.c").write_text(driver)
            (where / "exports.map").write_text(exports)
            zig_cc(
                ["-shared", "-fPIC", "-O2", "-g0", "-fstack-clash-protection", "-Wall", "-Werror", "-Wl,--gc-sections",
                 "-Wl,--build-id=none", "-s", "-Wl,-Bsymbolic", "-Wl,--version-script=exports.map",
                 f"-Wl,-soname,{soname}", "-o", "library.so",
                 "driver.c", "blob.S", "kernels.o", "-lm"],
                triple=f"{target.arch}-linux-gnu.{target.glibc}", cwd=where,
            )  # fmt: skip
            if not (where / "library.so").is_file():
                raise ToolchainError(
                    "the linker wrote no library.so", "it said that all went well", "run `edgecsi doctor`"
                )
            return (where / "library.so").read_bytes()

    except OSError as error:
        raise disk.refusal(
            error,
            Path(tempfile.gettempdir()),
            "make room for temporary files, or set TMPDIR to another folder",
        ) from error


def _kernels(linked: Linked, target: Target) -> bytes:
    """The object file of all kernels, compiled in a process of its own.

    Raises:
        ToolchainError: a kernel cannot be compiled; naming its layer.
    """
    try:
        return in_child(lambda: compile_object(linked.functions, target))
    except ChildFailed as error:
        raise ToolchainError(
            f"the compiler cannot make code for {', '.join(_culprits(linked, target))}",
            f"LLVM or TVM for {target.id}: {error}",
            "write these layers with other operators (docs/supported.md); `edgecsi doctor --report MODEL` packs what "
            "we need to mend it",
        ) from error


def _culprits(linked: Linked, target: Target) -> list[str]:
    """The layers whose kernels fail by themselves, and the kernels; all of them if none does."""
    guilty = []
    for name, function in linked.functions.items():
        try:
            in_child(partial(compile_object, {name: function}, target), PATIENCE // 10)
        except ChildFailed:
            guilty.append(name)
    most = 5
    shown = [f"{linked.layers[n]} ({n.partition('_')[2]})" for n in guilty or linked.functions]
    return [*shown[:most], *([f"and {len(shown) - most} more"] if len(shown) > most else [])]


def _driver(name: str, entries: Sequence[PlannedEntry], linked: Linked, target: Target) -> str:
    described = []
    for entry in entries:
        names = [f"in{i}" for i in range(len(entry.inputs))] + [f"out{i}" for i in range(len(entry.outputs))]
        parameters = [f"const {C_TYPES[t.dtype]} *in{i}" for i, t in enumerate(entry.inputs)]
        parameters += [f"{C_TYPES[t.dtype]} *out{i}" for i, t in enumerate(entry.outputs)]
        described.append({
            "name": entry.name, "names": names, "parameters": ", ".join(parameters), "workspace": entry.workspace,
            "loops": linked.loops[entry.name], "layers": len(entry.calls), "tensors": [*entry.inputs, *entry.outputs],
        })  # fmt: skip
    template = environment().get_template("driver.c.j2")
    return template.render(
        name=name, cname=name, arch=target.arch, features=feature_bits(target), entries=described,
        kernels=sorted(linked.counts.items()), stack_workspace=STACK_WORKSPACE,
    )  # fmt: skip
