"""The whole build on one screen: a model becomes a bundle in these stages, in this order.

    load ─▶ compress ─▶ lower ─▶ generate ─▶ check ─▶ write

Each stage takes the `Build`, adds what it made, and leaves the rest alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi import bundle as bundles
from edgecsi import disk
from edgecsi import target as targets
from edgecsi.bundle.signature import sign_bytes
from edgecsi.errors import CheckFailed, UsageError
from edgecsi.names import as_name, bundle_folder, bundle_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecsi.codegen.library import Linked
    from edgecsi.codegen.program import Entry
    from edgecsi.device import Device
    from edgecsi.evaluate import Difference
    from edgecsi.models.load import LoadedModel

Progress = Callable[[float, float, str], None]

GOLDEN_SAMPLES = 4
CHECK_SAMPLES = 64
EMULATED_SAMPLES = 16  # QEMU takes some 50 times as long
FP32_TOLERANCE = 1e-5  # of the largest output
# An fp32 sum in another order may move one int8 code; what counts then is the NMSE.
QUANTISED_TOLERANCE, NMSE_TOLERANCE_DB = 0.1, 0.01


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        model: zoo name, ``module:factory``, ``file.py:factory`` or ``.safetensors``. target: name or file.
        out: folder of the bundle; default: its name and target's. entry: one entry only. weights: replace the weights.
        recipe: post-training compression; calib: its data. input_shape: with the batch.
        batches: also build entries that take so many inputs at once, ``decoder_b8``.
        dump_ir: folder for the IR after every pass. name: of the bundle. dry_run: stop before code is generated.
        records: files of tuning records to use beside those that ship and the user's own; None: use none at all.
        allow_random: a zoo network without shipped weights gets seeded random ones.
        sign: SSH key to sign the bundle with. build_number: for the manifest; devices refuse a lower one.
    """

    model: str
    target: str
    out: Path | None = None
    entry: str | None = None
    weights: str | None = None
    recipe: str | None = None
    calib: str | None = None
    input_shape: tuple[int, ...] | None = None
    dump_ir: Path | None = None
    name: str | None = None
    batches: tuple[int, ...] = ()
    dry_run: bool = False
    allow_random: bool = False
    records: tuple[Path, ...] | None = ()
    sign: Path | None = None
    build_number: int | None = None


@dataclass
class Build:
    """A build on its way: the options, and what the stages made so far."""

    options: BuildOptions
    target: targets.Target
    model: LoadedModel | None = None
    name: str = ""
    entries: list[Entry] = field(default_factory=list)
    linked: Linked | None = None
    manifest: bundles.Manifest | None = None
    files: dict[str, bytes | Path] = field(default_factory=dict)
    bundle: bundles.Bundle | None = None
    note: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class BuildResult:
    """What a build made.

    Attributes:
        manifest: as in the bundle (without file hashes after a dry run). bundle: None after a dry run.
    """

    manifest: bundles.Manifest
    bundle: bundles.Bundle | None


def build(
    options: BuildOptions,
    progress: Progress = lambda done, total, what: None,
    note: Callable[[str], None] = lambda text: None,
) -> BuildResult:
    """Build a bundle.

    Args:
        progress: called with (stages done, stages in all, what comes next).
        note: called with what the user should know before the work goes on.

    Raises:
        InputError: model, weights, data, target or recipe cannot be used. ToolchainError: compiling failed.
        CheckFailed: the library does not answer what PyTorch answers; nothing is written.
        BundleError: the folder holds something else than a bundle, or cannot be written.
    """
    state = Build(options, targets.load(options.target), note=note)
    stages = STAGES[: STAGES.index(generate)] if options.dry_run else STAGES
    for number, stage in enumerate(stages):
        progress(number, len(stages), (stage.__doc__ or stage.__name__).splitlines()[0].rstrip("."))
        stage(state)
    progress(len(stages), len(stages), "done")
    assert state.manifest is not None
    return BuildResult(state.manifest, state.bundle)


def load(state: Build) -> None:
    """Load the model."""
    from edgecsi.models.load import load_model

    o = state.options
    state.model = load_model(o.model, o.weights, o.input_shape, allow_random=o.allow_random)
    if o.entry is not None and o.entry not in state.model.entries:
        raise UsageError(
            f"{o.model} has no entry {o.entry!r}",
            f"it has {', '.join(state.model.entries)}",
            "name one of these",
        )
    state.name = as_name(o.name) if o.name is not None else bundle_name(o.model, state.model.module, o.recipe)
    if not o.dry_run:
        bundles.refuse_to_replace(_out(state))
        before = bundles.what_is_in(_out(state))
        if before is not None and before != (state.name, state.target.id):
            state.note(f"{_out(state)} holds {before[0]} for {before[1]}, which this build replaces")
    if o.sign is not None:
        sign_bytes(b"", o.sign)


def compress(state: Build) -> None:
    """Apply the recipe."""
    o = state.options
    if o.recipe is None:
        return
    import torch

    from edgecsi.channels import files
    from edgecsi.compress import apply_post_training
    from edgecsi.models.load import entries_of

    assert state.model is not None
    calibration = torch.from_numpy(files.load(o.calib)) if o.calib else None
    module = apply_post_training(state.model.module, state.model.example_input, o.recipe, calibration)
    entries = entries_of(state.model.name, module, state.model.example_input)
    state.model = replace(state.model, module=module, entries=entries)


def lower(state: Build) -> None:
    """Lower to kernels."""
    from edgecsi import lower as lowering
    from edgecsi.codegen.target_features import refuse_undeclared_features
    from edgecsi.kernels.records import known_records

    assert state.model is not None
    refuse_undeclared_features(state.target)
    wanted, files = state.options.entry, state.options.records
    records = known_records(state.target, files) if files is not None else None
    for name, entry in state.model.entries.items():
        if wanted is None or name == wanted:
            dump = _dump(state.options.dump_ir, name)
            state.entries += lowering.lower(
                entry.module, (entry.example_input,), name, state.target, dump, state.options.batches,
                records,
            )  # fmt: skip
    state.manifest = _manifest(state)


def generate(state: Build) -> None:
    """Generate and link the library."""
    from edgecsi.codegen.interface import render_example, render_header
    from edgecsi.codegen.library import build_library, gather

    assert state.manifest is not None
    manifest = state.manifest
    state.linked = gather(state.entries)
    library = build_library(
        manifest.cname, state.entries, state.linked, bundles.embedded_json(manifest), state.target
    )
    golden = bundles.golden_npz(manifest.entries, _golden(state))
    state.files = {
        manifest.library: library, manifest.header: render_header(manifest), "golden.npz": golden,
        **render_example(manifest),
    }  # fmt: skip


def check(state: Build) -> None:
    """Check the answer against PyTorch."""
    from edgecsi.device import open_device
    from edgecsi.evaluate import evaluate

    assert state.manifest is not None
    assert state.model is not None
    manifest, target = state.manifest, state.target
    missing = target.missing_on_this_cpu()
    if not missing:
        device, samples = open_device("local"), CHECK_SAMPLES
    elif not target.emulate:
        state.manifest = replace(manifest, check=_not_run(f"this CPU lacks {', '.join(missing)}"))
        return
    elif shutil.which(f"qemu-{target.arch}") is None:
        state.manifest = replace(manifest, check=_not_run("QEMU is missing (apt-get install qemu-user)"))
        return
    else:
        device, samples = open_device("emulate"), EMULATED_SAMPLES
    x, data = check_inputs(state.model, samples)
    with disk.scratch(runs=True) as folder:
        trial = bundles.write_bundle(folder / manifest.name, manifest, state.files)
        found = evaluate(trial, x, data, device=device, reference=state.model)
        differences = found.differences | {
            name: _golden_difference(trial, name, device)
            for name in manifest.entries
            if _source_entry(name)[1]
        }
    quantised = any(layer.bits < 32 for e in manifest.entries.values() for layer in e.layers)
    allowed = QUANTISED_TOLERANCE if quantised else FP32_TOLERANCE
    entries = {}
    for name, difference in differences.items():
        full = name == "full"
        entries[name] = bundles.EntryCheck(
            difference.max_abs_diff, difference.max_rel_diff,
            found.nmse_db if full else None, found.nmse_db_pytorch if full else None,
        )  # fmt: skip
        if not difference.max_rel_diff <= allowed and (
            quantised or not _as_exact_as_pytorch(state, name, x, device)
        ):
            raise CheckFailed(
                f"{name} of {manifest.name} for {target.id} is wrong",
                f"it differs from PyTorch by {difference.max_rel_diff:.1e} of the largest output "
                f"({allowed:.0e} is allowed)",
                "nothing was written; please report this with the model, it is a bug of edgecsi",
            )
    if found.nmse_db is not None and found.nmse_db_pytorch is not None:
        off = abs(found.nmse_db - found.nmse_db_pytorch)
        if off > NMSE_TOLERANCE_DB:
            raise CheckFailed(
                f"{manifest.name} for {target.id} loses accuracy",
                f"its NMSE differs from PyTorch's by {off:.3f} dB",
                "nothing was written; please report this with the model, it is a bug of edgecsi",
            )
    state.manifest = replace(
        manifest, check=bundles.Check("passed", "", f"{data} on {device.spec}", len(x), entries)
    )


def _golden_difference(bundle: bundles.Bundle, entry: str, device: Device) -> Difference:
    """A batch entry against PyTorch, on its golden values."""
    from edgecsi.evaluate import difference

    (x,), (expected,) = bundles.read_golden(bundle, entry)
    return difference(
        device.run(bundle, entry, x.reshape(-1, *x.shape[2:])), expected.reshape(-1, *expected.shape[2:])
    )


def _as_exact_as_pytorch(state: Build, entry: str, x: NDArray[Any], device: Device) -> bool:
    """Whether an fp32 entry is as near to the answer in double precision as PyTorch is, within a factor of two.

    Asked when the two fp32 answers are apart: in a network that amplifies rounding, PyTorch's part of the difference
    is as large as the library's, and neither is wrong.
    """
    import copy

    import torch

    from edgecsi.evaluate import difference

    assert state.model is not None
    assert state.manifest is not None
    source, _ = _source_entry(entry)
    module = state.model.entries[source].module
    with torch.no_grad():
        given = torch.from_numpy(x)
        if source == "decoder":
            given = state.model.entries["encoder"].module(given)
        rows = state.manifest.entries[entry].inputs[0].shape[0]
        given = given[: len(given) // rows * rows]
        exact = copy.deepcopy(module).double()(given.double()).numpy()
        pytorch = difference(module(given).numpy(), exact).max_rel_diff
    with disk.scratch(runs=True) as folder:
        trial = bundles.write_bundle(folder / state.manifest.name, state.manifest, state.files)
        return difference(device.run(trial, entry, given.numpy()), exact).max_rel_diff <= 2 * pytorch


def write(state: Build) -> None:
    """Write the bundle."""
    assert state.manifest is not None
    key = state.options.sign
    signer = None if key is None else lambda data: sign_bytes(data, key)
    state.bundle = bundles.write_bundle(_out(state), state.manifest, state.files, signer)
    state.manifest = state.bundle.manifest


STAGES: list[Callable[[Build], None]] = [load, compress, lower, generate, check, write]


def check_inputs(model: LoadedModel, samples: int) -> tuple[NDArray[Any], str]:
    """Inputs to check with: shipped channels if the model takes channels, received signals for the detector,
    else seeded random numbers.

    Returns:
        float32 ``[samples, *shape]``, and what they are.
    """
    shape = tuple(model.example_input.shape)
    samples = -(-samples // shape[0]) * shape[0]
    if shape[1:] == (2, 32, 32):
        from edgecsi.channels.shipped import test_set

        return test_set(samples), "shipped UMi channels"
    numbers = np.random.default_rng(0).standard_normal((samples, *shape[1:]), np.float32)
    return numbers, "normally distributed numbers"


def _golden(state: Build) -> Mapping[str, Mapping[str, NDArray[Any]]]:
    """Inputs and PyTorch's outputs of every entry, float32 ``[samples, *shape]``; one sample of a batch entry."""
    import torch

    assert state.model is not None
    assert state.manifest is not None
    values: dict[str, dict[str, NDArray[Any]]] = {}
    with torch.no_grad():
        for name, described in state.manifest.entries.items():
            source, batched = _source_entry(name)
            shape = described.inputs[0].shape
            samples = 1 if batched else GOLDEN_SAMPLES
            channels, _ = check_inputs(state.model, samples * shape[0])
            x = torch.from_numpy(channels)
            if source == "decoder":
                x = state.model.entries["encoder"].module(x)
            x = x.reshape(samples, *shape)
            y = torch.stack([state.model.entries[source].module(sample) for sample in x])
            values[name] = {described.inputs[0].name: x.numpy(), described.outputs[0].name: y.numpy()}
    return values


def _source_entry(name: str) -> tuple[str, bool]:
    """``decoder_b8`` is the model's ``decoder``, for a batch."""
    source, mark, batch = name.rpartition("_b")
    return (source, True) if mark and batch.isdigit() else (name, False)


def _manifest(state: Build) -> bundles.Manifest:
    import torch

    from edgecsi.codegen.target_features import llvm_version

    assert state.model is not None
    target, model = state.target, state.model
    entries = {}
    for entry in state.entries:
        source, _ = _source_entry(entry.name)
        outer = "codeword" if source == "encoder" else "y"
        inner = "codeword" if source == "decoder" else "x"
        layers = tuple(bundles.Layer(**call.report) for call in entry.calls)
        entries[entry.name] = bundles.Entry(
            tuple(bundles.Tensor(inner if i == 0 else f"{inner}{i}", t.shape) for i, t in enumerate(entry.inputs)),
            tuple(bundles.Tensor(outer if i == 0 else f"{outer}{i}", t.shape) for i, t in enumerate(entry.outputs)),
            entry.workspace, entry.macs, entry.weight_bytes, layers,
        )  # fmt: skip
    trained = json.loads(model.metadata.get("compression", "{}")).get("recipe")
    return bundles.Manifest(
        name=state.name,
        library=f"lib{state.name}.so",
        header=f"{state.name}.h",
        created_with=bundles.Versions(
            version("edgecsi"), torch.__version__, version("apache-tvm"), version("apache-tvm-ffi"),
            llvm_version(), version("ziglang"),
        ),
        model=bundles.ModelInfo(
            _without_folder(state.options.model),
            model.metadata.get("model", model.name),
            model.sha256,
            state.options.recipe or trained,
        ),
        target=bundles.TargetInfo(
            target.id, target.arch, target.triple, target.mcpu, target.mattr, target.features, target.glibc,
            target.emulate,
        ),
        entries=entries,
        check=_not_run("the build has not come to it"),
        build_number=state.options.build_number,
    )  # fmt: skip


def _not_run(reason: str) -> bundles.Check:
    return bundles.Check("not run", reason)


def _dump(folder: Path | None, entry: str) -> Callable[[str, str], None]:
    """Writes the IR after every step as ``<folder>/<entry>/00-relax.txt``, …"""
    if folder is None:
        return lambda name, text: None
    place = folder / entry
    count = 0

    def write_one(name: str, text: str) -> None:
        nonlocal count
        disk.write(place / f"{count:02d}-{name}.txt", text, "choose another --dump-ir")
        count += 1

    return write_one


def _out(state: Build) -> Path:
    return state.options.out or bundle_folder(state.name, state.target.id)


def _without_folder(model: str) -> str:
    """MODEL as the manifest names it: where a file lay is nobody's business and differs between machines."""
    return Path(model).name if model.endswith(".safetensors") or "/" in model.partition(":")[0] else model
