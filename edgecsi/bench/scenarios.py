"""What docs/results.md reports: every measurement, with the bar it is held against. Data only.

A bar is a ratio to ONNX Runtime fp32 in the same interleaved run, millions of instructions, or a figure in
the unit of its fact. The bars are the project's own aims: `main path` for fp32, `kernels` for compressed
networks.
"""

from __future__ import annotations

from dataclasses import dataclass

MAIN = "main path"
KERNELS = "kernels"
ENGINES = ("onnxruntime", "openvino", "litert", "executorch", "torch")
_WORKLOADS = "edgecsi.bench.workloads"


@dataclass(frozen=True)
class Scenario:
    """One bundle measured in one way.

    Attributes:
        name: of its file in docs/results, without ending.
        title: in the tables.
        group: which table it is in, and whose aim its bar is.
        model: MODEL of ``edgecsi build``.
        entry: which entry is measured.
        target: what it is built for.
        bar: largest ratio to ONNX Runtime fp32 (``device`` local), or millions of instructions (emulate).
        recipe: for ``--recipe``, if any.
        calibration: for ``--calib``, if the recipe needs it.
        device: ``local`` or ``emulate``.
        against: engines measured in the same run.
    """

    name: str
    title: str
    group: str
    model: str
    entry: str
    target: str
    bar: float | None
    recipe: str = ""
    calibration: str = ""
    device: str = "local"
    against: tuple[str, ...] = ("onnxruntime",)


def _main(name: str, title: str, model: str, entry: str, bar: float) -> Scenario:
    return Scenario(name, title, MAIN, model, entry, "host", bar, against=ENGINES)


def _count(model: str, target: str, bar: float | None, group: str = MAIN, recipe: str = "") -> Scenario:
    name = f"instructions-{model.rpartition(':')[2].replace('_', '-')}-{target}"
    title = f"{model.rpartition(':')[2]}, full, {target}"
    calibration = "test" if recipe == "int8-static" else ""
    return Scenario(name, title, group, model, "full", target, bar, recipe, calibration, "emulate", ())


def _kernel(title: str, model: str, entry: str, bar: float, recipe: str = "") -> list[Scenario]:
    """A row of the kernels' table, for this machine and, without a bar, for portable AVX2."""
    calibration = "test" if recipe == "int8-static" and "net" in model else ""
    label = f"{model.replace('_', '-')}-{entry}" + (f"-{recipe}" if recipe else "")
    return [
        Scenario(
            f"{label}-{target}",
            title,
            KERNELS,
            f"{_WORKLOADS}:{model}",
            entry,
            target,
            bar if target == "host" else None,
            recipe,
            calibration,
        )
        for target in ("host", "x86")
    ]


SCENARIOS: tuple[Scenario, ...] = (
    _main("csinet-cr4-full", "CsiNet CR 1/4, full, fp32", "csinet-cr4", "full", 0.70),
    _main("csinet-cr16-full", "CsiNet CR 1/16, full, fp32", "csinet-cr16", "full", 0.40),
    _main("crnet-cr4-full", "CRNet CR 1/4, full, fp32", f"{_WORKLOADS}:crnet_cr4", "full", 0.60),
    _main("csinet-cr16-decoder", "CsiNet CR 1/16, decoder, fp32", "csinet-cr16", "decoder", 0.40),
    _count("csinet-cr4", "rpi4", 2.4),
    _count("csinet-cr4", "rpi5", None),
    *_kernel("Linear 2048→512, int8 dense", "linear", "full", 0.075, "int8-dynamic"),
    *_kernel("Linear 2048→512, 90 % unstructured fp32", "linear_unstructured", "full", 0.16),
    *_kernel("Linear 2048→512, 90 % 16×1 fp32", "linear_block16x1", "full", 0.040),
    *_kernel("Linear 2048→512, 90 % 16×1 int8", "linear_block16x1", "full", 0.036, "int8-dynamic"),
    *_kernel("Linear 2048→512, 90 % 16×4 int8", "linear_block16x4", "full", 0.025, "int8-dynamic"),
    *_kernel("CsiNet CR 1/4, full, int8 dense", "csinet_cr4", "full", 0.12, "int8-static"),
    *_kernel("CsiNet CR 1/4, full, 90 % blocks + int8", "csinet_cr4_block90", "full", 0.07, "int8-static"),
    *_kernel("CsiNet CR 1/4, full, 75 % blocks + int8", "csinet_cr4_block75", "full", 0.09, "int8-static"),
    *_kernel("CsiNet CR 1/4, encoder, joint", "csinet_cr4_block90", "encoder", 0.06, "int8-static"),
    *_kernel("CsiNet CR 1/16, full, joint", "csinet_cr16_block90", "full", 0.17, "int8-static"),
    *_kernel("CsiNet CR 1/4, decoder, joint", "csinet_cr4_block90", "decoder", 0.11, "int8-static"),
    *_kernel("CRNet CR 1/4, full, joint", "crnet_cr4_block90", "full", 0.12, "int8-static"),
    *_kernel("MLP 60-600×7-20, int8", "mlp", "full", 0.13, "int8-dynamic"),
    *_kernel("MLP 60-600×7-20, joint", "mlp_block16x4", "full", 0.06, "int8-dynamic"),
    _count(f"{_WORKLOADS}:csinet_cr4_block90", "rpi4", 1.4, KERNELS, "int8-static"),
    _count(f"{_WORKLOADS}:csinet_cr4_block90", "rpi5", 0.8, KERNELS, "int8-static"),
)


@dataclass(frozen=True)
class Fact:
    """A single figure about the tool itself; ``measure`` in results.py is found by ``name``."""

    name: str
    title: str
    unit: str
    bar: float


FACTS: tuple[Fact, ...] = (
    Fact("build_seconds", "`edgecsi build csinet-cr4 --target host`, imports included", "s", 30.0),
    Fact("help_seconds", "`edgecsi --help`", "s", 0.5),
    Fact("run_overhead_us", "`edgecsi.load(...).run` above the C call, CsiNet CR 1/16", "µs", 5.0),
    Fact("program_memory_mb", "peak memory of the C example running CsiNet CR 1/16", "MB", 8.0),
)
