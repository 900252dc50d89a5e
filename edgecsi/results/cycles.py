"""How many cycles the hot loops take on the Raspberry Pi's CPUs: an estimate by LLVM's machine code analyser.

``llvm-mca`` plays the pipeline of a CPU on a piece of assembly, with every load in the L1 cache. It knows
nothing of memory, of branches and of the rest of the kernel: an estimate, no measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgecsi import target as targets
from edgecsi.kernels.variants import products
from edgecsi.tune.cycles import MODELS, analyse, find_tool, hot_loop, multiply_adds

TARGETS = ("rpi4", "rpi5")
NOTES = (
    "Cortex-A76 is estimated by LLVM's model of its sibling Neoverse N1. Layers that only move or convert "
    "numbers are left out, and so is what kernels do outside of the loop."
)


@dataclass(frozen=True)
class Loop:
    """The innermost loop of a kernel that multiplies most.

    Attributes:
        cpu: which CPU it is compiled for.
        layer, kernel: whose it is.
        instructions: of one pass.
        cycles: of one pass, estimated.
        macs: multiply-adds of one pass.
        thousand_cycles: for all multiply-adds of the layer.
    """

    cpu: str
    layer: str
    kernel: str
    instructions: int
    cycles: float
    macs: int
    thousand_cycles: float | None


@dataclass(frozen=True)
class Cycles:
    """The loops of a network on all CPUs, by which tool, and what to know about it."""

    model: str
    tool: str
    loops: tuple[Loop, ...]
    notes: str = NOTES


def estimate_cycles(model: str, recipe: str, calibration: str) -> Cycles:
    """Compiles the ``full`` entry of a model for the Raspberry Pi's CPUs and estimates its hot loops.

    Args:
        model: as MODEL of ``edgecsi build``.
        recipe: to apply first; may be empty.
        calibration: data for the recipe; may be empty.

    Raises:
        ToolchainError: llvm-mca is not installed, or cannot read the assembly.
        ModelError, RecipeError, DataError: as a build would.
    """
    import torch

    from edgecsi.channels import files
    from edgecsi.codegen.compile import compile_module
    from edgecsi.compress import apply_post_training
    from edgecsi.lower import lower
    from edgecsi.models.load import load_model

    tool = find_tool()
    loaded = load_model(model, allow_random=True)
    module = loaded.module
    if recipe:
        data = torch.from_numpy(files.load(calibration)) if calibration else None
        module = apply_post_training(module, loaded.example_input, recipe, data)
    loops: list[Loop] = []
    for name in TARGETS:
        target = targets.load(name)
        (entry,) = lower(module, (loaded.example_input,), "full", target)
        for call in entry.calls:
            assembly = compile_module({"kernel": call.function}, target).inspect_source("asm")
            body = hot_loop(assembly)
            macs = multiply_adds(body)
            if not macs:
                continue
            cycles = analyse(tool, MODELS.get(target.mcpu, target.mcpu), body)
            carried_out = call.report["macs"] * call.report["density"]
            carried_out *= products(call.kernel)
            loops.append(
                Loop(
                    target.mcpu,
                    call.layer,
                    call.kernel,
                    len(body),
                    cycles,
                    macs,
                    carried_out / macs * cycles / 1e3 if carried_out else None,
                )
            )
    return Cycles(model, tool, tuple(loops))
