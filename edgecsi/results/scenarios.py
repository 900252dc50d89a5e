"""What docs/results.md reports: every measurement, with the bar it is held against. Data only.

A bar is a ratio to another engine, mostly ONNX Runtime fp32, in the same interleaved run (of times, at most; of samples
a second for batches, at least), millions of instructions, or a figure in the unit of its fact. The bars are the
project's own aims: `main path` for fp32, `kernels` for compressed networks, `papers` for networks of others,
`sixteen bits` against an engine that computes in as few.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgecsi.models import registry
from edgecsi.results.zoo import computes

MAIN = "main path"
KERNELS = "kernels"
PAPERS = "papers"
NARROW = "sixteen bits"
ENGINES = ("onnxruntime", "openvino", "litert", "executorch", "torch")
_WORKLOADS = "edgecsi.results.workloads"
_PAPERS = "edgecsi.results.papers.networks"


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
        bar: largest ratio to the peer (``device`` local), smallest ratio of samples a second (with
            ``batch``), or millions of instructions (``device`` emulate).
        recipe: for ``--recipe``, if any.
        calibration: for ``--calib``, if the recipe needs it.
        shipped: a compressed network of the zoo; where its weights ship it is built instead of ``model`` by
            ``recipe``, which has the same shapes and the same share of zeros, in random weights.
        device: ``local`` or ``emulate``.
        against: engines measured in the same run.
        batch: samples a thread takes at once, 0 for latencies.
        threads: with ``batch``.
        peer: the engine that the bar is a ratio to.
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
    shipped: str = ""
    device: str = "local"
    against: tuple[str, ...] = ("onnxruntime",)
    batch: int = 0
    threads: int = 1
    peer: str = "onnxruntime"


@dataclass(frozen=True)
class Network:
    """A compressed network of several scenarios: see the fields of :class:`Scenario`."""

    model: str
    recipe: str = ""
    calibration: str = ""
    shipped: str = ""


def _int8(model: str) -> Network:
    return Network(model, "int8-static", "test", f"{model}+int8-static")


def _joint(model: str, percent: int) -> Network:
    """Blocks of 16x4 pruned and every layer static int8, in random weights: the joint networks that ship take their
    images in two planes of codes, for the NMSE's sake and twice the multiplications, and have rows of their own."""
    return Network(f"{_WORKLOADS}:{model.replace('-', '_')}_block{percent}", "int8-static", "test")


CR4_INT8 = _int8("csinet-cr4")
CR4_JOINT, CR4_JOINT75 = _joint("csinet-cr4", 90), _joint("csinet-cr4", 75)
CR16_JOINT, CRNET_JOINT = _joint("csinet-cr16", 90), _joint("crnet-cr4", 90)


def _layer(factory: str, recipe: str = "") -> Network:
    return Network(f"{_WORKLOADS}:{factory}", recipe)


def _main(title: str, model: str, entry: str, bar: float) -> Scenario:
    return Scenario(f"{model}-{entry}", title, MAIN, model, entry, "host", bar, against=ENGINES)


def _count(name: str, title: str, network: Network, target: str, bar: float | None, group: str) -> Scenario:
    return Scenario(
        f"instructions-{name}-{target}",
        f"{title}, {target}",
        group,
        network.model,
        "full",
        target,
        bar,
        network.recipe,
        network.calibration,
        network.shipped,
        "emulate",
        (),
    )


def _kernel(
    name: str, title: str, network: Network, bar: float | None, entry: str = "full"
) -> list[Scenario]:
    """A row of the kernels' table, for this machine and, without a bar, for portable AVX2."""
    return [
        Scenario(
            f"{name}-{target}",
            title,
            KERNELS,
            network.model,
            entry,
            target,
            bar if target == "host" else None,
            network.recipe,
            network.calibration,
            network.shipped,
        )
        for target in ("host", "x86")
    ]


def _batches(name: str, title: str, network: Network, entry: str, bar: float) -> Scenario:
    return Scenario(
        name,
        title,
        KERNELS,
        network.model,
        entry,
        "host",
        bar,
        network.recipe,
        network.calibration,
        network.shipped,
        batch=64,
        threads=2,
    )


def _to_bf16(recipe: str, bar: float | None) -> Scenario:
    """CsiNet CR 1/4 against OpenVINO in bf16."""
    peer, bits = "openvino-bf16", recipe or "fp32"
    return Scenario(
        f"csinet-cr4-{bits}-to-{peer}", f"CsiNet CR 1/4, full, {bits}", NARROW, "csinet-cr4", "full", "host", bar,
        recipe, against=(peer,), peer=peer,
    )  # fmt: skip


def _paper(factory: str, title: str) -> list[Scenario]:
    """Two rows of the table of other papers' networks: fp32, and every layer int8 that can be."""
    network = f"{_PAPERS}:{factory}"
    return [
        Scenario(f"papers-{factory}", f"{title}, fp32", PAPERS, network, "full", "host", 1.0),
        Scenario(
            f"papers-{factory}-int8", f"{title}, int8 static", PAPERS, network, "full", "host", 0.5,
            "int8-static", "test",
        ),
    ]  # fmt: skip


def _shipped() -> list[Scenario]:
    """The networks that ship pruned and in int8, or trained in int8: no bar, but what their users get. Two of them on
    more targets."""
    covered = {scenario.shipped for scenario in _AIMS}
    found = []
    for path in sorted(registry.WEIGHTS.glob("*+*int8*.safetensors")):
        name, short = path.stem, path.stem.replace("+", "-")
        if name in covered or not ("prune" in name or name.endswith("int8-trained")):
            continue
        if computes(name, "x86"):
            found.append(Scenario(short, name, KERNELS, name, "full", "host", None))
        if name.startswith("csinet-cr4+prune90"):
            if computes(name, "x86"):
                found.append(Scenario(f"{short}-x86", name, KERNELS, name, "full", "x86", None))
            found += [
                _count(short, name, Network(name), target, None, KERNELS)
                for target in ("rpi4", "rpi5")
                if computes(name, target)
            ]
    return found


_AIMS: tuple[Scenario, ...] = (
    _main("CsiNet CR 1/4, full, fp32", "csinet-cr4", "full", 0.70),
    _main("CsiNet CR 1/16, full, fp32", "csinet-cr16", "full", 0.40),
    _main("CRNet CR 1/4, full, fp32", "crnet-cr4", "full", 0.60),
    _main("CsiNet CR 1/16, decoder, fp32", "csinet-cr16", "decoder", 0.40),
    _count("csinet-cr4", "CsiNet CR 1/4, full, fp32", Network("csinet-cr4"), "rpi4", 2.4, MAIN),
    _count("csinet-cr4", "CsiNet CR 1/4, full, fp32", Network("csinet-cr4"), "rpi5", None, MAIN),
    *_kernel("linear-int8", "Linear 2048→512, int8 dense", _layer("linear", "int8-dynamic"), 0.075),
    *_kernel("linear-90", "Linear 2048→512, 90 % unstructured fp32", _layer("linear_unstructured"), 0.16),
    *_kernel("linear-90-16x1", "Linear 2048→512, 90 % 16×1 fp32", _layer("linear_block16x1"), 0.040),
    *_kernel(
        "linear-90-16x1-int8",
        "Linear 2048→512, 90 % 16×1 int8 weights",
        _layer("linear_block16x1", "int8-weights"),
        0.036,
    ),
    *_kernel(
        "linear-90-16x4-int8",
        "Linear 2048→512, 90 % 16×4 int8",
        _layer("linear_block16x4", "int8-dynamic"),
        0.025,
    ),
    *_kernel("csinet-cr4-int8", "CsiNet CR 1/4, full, int8 static, dense", CR4_INT8, 0.12),
    *_kernel("csinet-cr4-joint90", "CsiNet CR 1/4, full, 90 % blocks + int8", CR4_JOINT, 0.07),
    *_kernel("csinet-cr4-joint75", "CsiNet CR 1/4, full, 75 % blocks + int8", CR4_JOINT75, 0.09),
    *_kernel("csinet-cr4-encoder-joint90", "CsiNet CR 1/4, encoder, joint", CR4_JOINT, 0.06, "encoder"),
    *_kernel("csinet-cr16-joint90", "CsiNet CR 1/16, full, joint", CR16_JOINT, 0.17),
    *_kernel("csinet-cr4-decoder-joint90", "CsiNet CR 1/4, decoder, joint", CR4_JOINT, 0.11, "decoder"),
    *_kernel("crnet-cr4-joint90", "CRNet CR 1/4, full, joint", CRNET_JOINT, 0.12),
    *_kernel(
        "csinet-cr4-joint90-int16",
        "CsiNet CR 1/4, full, joint, convolutions int16",
        Network("csinet-cr4+prune90-bsr16x4-int8-dynamic", "int16"),
        0.13,
    ),
    *_kernel("csinet-cr4-int16", "CsiNet CR 1/4, full, int16", Network("csinet-cr4", "int16"), None),
    _to_bf16("int16", 0.667),
    _to_bf16("", None),
    *_kernel("csinet-cr16-int16", "CsiNet CR 1/16, full, int16", Network("csinet-cr16", "int16"), None),
    *_kernel(
        "transformer-codec",
        "Transformer codec, d = 128, 32 tokens, 4 layers, fp32",
        _layer("transformer_codec"),
        None,
    ),
    *_kernel(
        "transformer-codec-int16", "Transformer codec, int16", _layer("transformer_codec", "int16"), None
    ),
    *_kernel("mlp-int8", "MLP 60-600×7-20, int8", _layer("mlp", "int8-dynamic"), 0.13),
    *_kernel("mlp-joint90", "MLP 60-600×7-20, joint", _layer("mlp_block16x4", "int8-dynamic"), 0.06),
    _batches(
        "csinet-cr4-decoder-joint90-batch64", "CsiNet CR 1/4, decoder, joint", CR4_JOINT, "decoder", 3.0
    ),
    _count("csinet-cr4-joint90", "CsiNet CR 1/4, full, joint", CR4_JOINT, "rpi4", 1.4, KERNELS),
    _count("csinet-cr4-joint90", "CsiNet CR 1/4, full, joint", CR4_JOINT, "rpi5", 0.8, KERNELS),
    _count(
        "csinet-cr4-joint90-f16",
        "CsiNet CR 1/4, full, joint, convolutions in half precision",
        Network("csinet-cr4+prune90-bsr16x4-int8-dynamic", "f16"),
        "rpi5",
        0.75,
        KERNELS,
    ),
    *_paper("transnet", "TransNet CR 1/4"),
    *_paper("stnet", "STNet CR 1/4"),
    *_paper("acrnet", "ACRNet CR 1/4"),
    *_paper("clnet", "CLNet CR 1/4, dense layers as convolutions"),
    *_paper("vector_quantised", "Codebook, 32 of 256 vectors"),
    *_paper("bit_codec", "Bits, 128 values of 4"),
)
SCENARIOS: tuple[Scenario, ...] = (*_AIMS, *_shipped())


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
    Fact(
        "run_above_c_us",
        "`edgecsi.load(...).run` above the C call, encoder of CsiNet CR 1/4, joint",
        "µs",
        1.5,
    ),
    Fact("run_above_c_cold_us", "the same, 8 MB read before every call", "µs", 1.5),
    Fact("joint_library_kb", "library of CsiNet CR 1/4, joint, all entries, for this machine", "kB", 450.0),
    Fact("transformer_int16_share", "transformer codec in int16, in turns with fp32", "of fp32's time", 0.60),
    Fact("tune_joint_seconds", "`edgecsi tune` of CsiNet CR 1/4, joint, from nothing", "s", 180.0),
    Fact(
        "rank_of_estimates",
        "Spearman's correlation of kernels' times and calibrated estimates",
        "below 1",
        0.1,
    ),
    Fact("estimates_off", "layers that a calibrated target predicts more than 1.3 times off", "of all", 0.1),
    Fact("program_memory_mb", "peak memory of the C example running CsiNet CR 1/16", "MB", 8.0),
)


@dataclass(frozen=True)
class Change:
    """A network as an earlier commit builds it, and as today's code does.

    Attributes:
        name, title: in the raw results, and in the table.
        model: MODEL of ``edgecsi build`` then; ``workloads.py`` lies where it is built.
        bar: largest ratio of today's time to the earlier one's.
        today, recipe: MODEL and ``--recipe`` today, where they are others.
        entry: which one is measured.
    """

    name: str
    title: str
    model: str
    bar: float
    today: str = ""
    recipe: str = ""
    entry: str = "full"


_JOINT = "csinet-cr4+prune90-bsr16x4-int8-dynamic"
CHANGES: tuple[Change, ...] = (
    Change("joint-int16", "CsiNet CR 1/4, full, joint; today convolutions int16", _JOINT, 0.60, f"{_JOINT}+int16"),
    Change("convolutions", "CsiNet, convolutions of the decoder alone, fp32", "workloads.py:csinet_convolutions", 0.70),
    Change("cr16-decoder", "CsiNet CR 1/16, decoder, fp32", "csinet-cr16", 0.78, entry="decoder"),
    Change("cr16", "CsiNet CR 1/16, full, fp32", "csinet-cr16", 0.82),
    Change("cr4-int16", "CsiNet CR 1/4, full, fp32; today int16", "csinet-cr4", 0.62, recipe="int16"),
    Change(
        "transformer-int16", "Transformer codec, fp32; today int16", "workloads.py:transformer_codec", 0.60,
        recipe="int16",
    ),
    Change("cr4", "CsiNet CR 1/4, full, fp32", "csinet-cr4", 1.02),
    Change("joint", "CsiNet CR 1/4, full, joint", _JOINT, 1.02),
    Change("joint-encoder", "CsiNet CR 1/4, encoder, joint", _JOINT, 1.02, entry="encoder"),
)  # fmt: skip
