"""TIR functions to machine code: plain C functions on raw pointers, for any target TVM's LLVM knows.

TVM's own build wraps every function in its packed calling convention, which unpacks and checks DLTensors at each
call. Kernels of one library call each other's neighbours thousands of times a second, so here they stay bare:
``void name(float *x, const float *w, float *y)``, and one generated C driver serves both faces of the library.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgecsi.errors import ToolchainError
from edgecsi.target import Target

if TYPE_CHECKING:
    import tvm


@cache
def tvm_target(target: Target) -> tvm.target.Target:
    """The TVM target of a board; cached, since TVM parses it anew each time."""
    import tvm

    bare = tvm.target.Target(target.tvm())
    return bare.with_host(bare)


def lower(functions: Mapping[str, tvm.tirx.PrimFunc], target: Target) -> tvm.IRModule:
    """TIR functions to flat TIR on raw pointers, named by the mapping's keys."""
    import tvm
    from tvm import s_tir, tirx

    from edgecsi.codegen.vector_math import use_vector_math

    use_vector_math()
    scheduled, flat = s_tir.transform, tirx.transform
    named = {
        name: func.with_attrs({"global_symbol": name, "calling_conv": 1, "tirx.noalias": True})
        for name, func in functions.items()
    }
    passes = [
        flat.BindTarget(tvm_target(target)),
        scheduled.CanonicalizeLoop(),
        scheduled.LowerInitBlock(),
        scheduled.PlanAndUpdateBufferAllocationLocation(),
        scheduled.ConvertBlocksToOpaque(),
        scheduled.CompactBufferAllocation(),
        scheduled.LowerMatchBuffer(),
        scheduled.StmtSimplify(),
        scheduled.LowerOpaqueBlock(),
        flat.FlattenBuffer(),
        flat.NarrowDataType(32),
        scheduled.LoopPartition(),
        flat.VectorizeLoop(),
        flat.StorageRewrite(),
        scheduled.HoistIfThenElse(),
        flat.UnrollLoop(),
        scheduled.RenormalizeSplitPattern(),
        flat.StmtSimplify(),
        flat.RemoveNoOp(),
        scheduled.RewriteUnsafeSelect(),
        flat.CommonSubexprElim(),
        _raw_pointers(),
        # Without LowerTVMBuiltin, which would take local arrays from the heap, they lie on the stack.
        flat.LowerIntrin(),
        _not_equal_if_not_a_number(),
    ]
    return tvm.transform.Sequential(passes)(tvm.IRModule(named))


def _raw_pointers() -> tvm.ir.transform.Pass:
    """Parameters become pointers: the place of TVM's MakePackedAPI."""
    import tvm
    from tvm import tirx

    def unpack(func: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
        params, declared = [], []
        for buffer in func.params:
            pointer = tirx.Var(buffer.name, tvm.ir.PointerType(tvm.ir.PrimType(buffer.dtype)))
            params.append(pointer)
            declared.append(tirx.DeclBuffer(buffer, data=pointer))
        return tirx.PrimFunc(params, tirx.SeqStmt([*declared, func.body]), func.ret_type, func.attrs)

    def run(mod: tvm.IRModule, _context: object) -> tvm.IRModule:
        return tvm.IRModule({g: unpack(f) for g, f in mod.functions.items()})

    return tvm.transform.module_pass(run, opt_level=0, name="edgecsi.RawPointers")


def _not_equal_if_not_a_number() -> tvm.ir.transform.Pass:
    """``a != b`` is true if one is not a number, as everywhere else: LLVM gets from TVM a comparison that is false then.

    Last of all, since TVM's simplifier would turn it back.
    """
    import tvm
    import tvm_ffi
    from tvm import tirx

    def negated(compared: tvm.tirx.NE) -> tvm.ir.PrimExpr:
        if "float" not in str(compared.a.ty):
            return compared
        return tirx.Not(tirx.EQ(compared.a, compared.b))

    def run(mod: tvm.IRModule, _context: object) -> tvm.IRModule:
        functions = {
            g: f.with_body(tvm_ffi.structural_map(f.body, (tirx.NE, negated)))
            for g, f in mod.functions.items()
        }
        return tvm.IRModule(functions)

    return tvm.transform.module_pass(run, opt_level=0, name="edgecsi.NotEqualIfNotANumber")


def compile_module(functions: Mapping[str, tvm.tirx.PrimFunc], target: Target) -> tvm.runtime.Module:
    """Machine code of the functions; ``inspect_source("asm")`` shows it.

    Raises:
        ToolchainError: LLVM refused the code.
    """
    import tvm

    flat = lower(functions, target)
    try:
        return _with_stack_probes(tvm.get_global_func("target.build.llvm")(flat, tvm_target(target)))
    except RuntimeError as error:
        raise ToolchainError(
            f"LLVM could not compile kernels for {target.id}",
            str(error).strip().splitlines()[-1],
            "report this as a bug",
        ) from error


def _with_stack_probes(module: tvm.runtime.Module) -> tvm.runtime.Module:
    """The module with every page of a large frame touched in order, so that a thread whose stack is too small stops
    at its guard page instead of writing beyond it. TVM has no option for that, but LLVM's assembly language has;
    functions whose frame is less than a page stay as they are, byte for byte."""
    import tvm

    with _in_memory() as path:
        module.write_to_file(path, "ll")
        text = Path(path).read_text(encoding="utf-8")
        probed = text.replace(' "target-cpu"=', ' "probe-stack"="inline-asm" "target-cpu"=')
        Path(path).write_text(probed, encoding="utf-8")
        return tvm.get_global_func("ffi.Module.load_from_file.ll")(path, "ll")


@contextmanager
def _in_memory() -> Iterator[str]:
    """The path of a file in memory: on a disk that is full or failing, LLVM would end the whole process."""
    handle = os.memfd_create("edgecsi", os.MFD_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def compile_object(functions: Mapping[str, tvm.tirx.PrimFunc], target: Target) -> bytes:
    """An ELF object with one C function per entry of the mapping, ``void name(pointers…)``."""
    module = compile_module(functions, target)
    with _in_memory() as path:
        module.write_to_file(path, "o")
        return Path(path).read_bytes()
