"""The whole build on one screen: a model becomes a bundle in these stages, in this order.

    load ─▶ compress ─▶ lower ─▶ generate ─▶ check ─▶ write

Each stage takes what it needs and returns what it made.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from edgecsi import bundle as bundles
from edgecsi import disk
from edgecsi import target as targets
from edgecsi.bundle.signature import sign_bytes
from edgecsi.check import Draft, channel_nmse, golden_values
from edgecsi.check import check as compare
from edgecsi.codegen import zig
from edgecsi.describe import manifest_of
from edgecsi.errors import CheckFailed, Notice, UsageError
from edgecsi.names import as_name, bundle_folder, bundle_name
from edgecsi.progress import Progress
from edgecsi.target import Target

if TYPE_CHECKING:
    from edgecsi.codegen.program import PlannedEntry
    from edgecsi.models.load import LoadedModel

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        model: zoo name, ``module:factory``, ``file.py:factory`` or ``.safetensors``. target: name or file.
        out: folder of the bundle; default: its name and target's. entry: one entry only. weights: replace the weights.
        outputs: the only ones to keep of entries with several; none: all.
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
    outputs: tuple[str, ...] = ()
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
) -> BuildResult:
    """Build a bundle. What the user should know before the work goes on is said (:class:`edgecsi.errors.Notice`).

    Args:
        progress: called with (stages done, stages in all, what comes next).

    Raises:
        InputError: model, weights, data, target or recipe cannot be used. ToolchainError: compiling failed.
        CheckFailed: the library does not answer what PyTorch answers; nothing is written.
        BundleError: the folder holds something else than a bundle.
    """
    if options.calib is not None and options.recipe is None:
        raise UsageError(
            "--calib does nothing without --recipe",
            "the network is built as it is, and there are no int8 layers to fit to the data",
            "add --recipe int8-dynamic, say (edgecsi recipes), or leave --calib away",
        )
    if not options.dry_run:
        zig.caches()  # learn now that they cannot be written, not when the compiler runs
    done, total = 0, 3 if options.dry_run else len(STAGES)

    def run(stage: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        nonlocal done
        progress(done, total, (stage.__doc__ or "").splitlines()[0].rstrip("."))
        done += 1
        return stage(*arguments, **named)

    target = targets.load(options.target)
    source = run(load, options, target)
    model = run(compress, options, source.model)
    lowered = run(lower, options, source.name, model, target)
    bundle = None
    if not options.dry_run:
        draft = run(generate, lowered, model)
        checked = run(check, options, draft, model, target)
        bundle = run(write, options, source.out, checked)
    progress(total, total, "done")
    return BuildResult(bundle.manifest if bundle is not None else lowered.manifest, bundle)


@dataclass(frozen=True)
class Source:
    """What is built: the model, the bundle's name, and its folder."""

    model: LoadedModel
    name: str
    out: Path


@dataclass(frozen=True)
class Lowered:
    """What is compiled: the entries, with their kernels and places in memory, and the manifest that says so."""

    manifest: bundles.Manifest
    entries: Sequence[PlannedEntry]
    target: Target


def load(options: BuildOptions, target: Target) -> Source:
    """Load the model."""
    from edgecsi.compress.loss import say_untrained
    from edgecsi.models.load import load_model

    o = options
    model = load_model(o.model, o.weights, o.input_shape, allow_random=o.allow_random)
    for part in model.entries.values():
        if part.note:
            warnings.warn(Notice(f"{model.name}: {part.note}"), stacklevel=4)
    if o.entry is not None and o.entry not in model.entries:
        raise UsageError(
            f"{o.model} has no entry {o.entry!r}", f"it has {', '.join(model.entries)}", "name one of these"
        )
    before = model.recipe if o.weights is not None else None  # the name of a file of its own says enough
    name = as_name(o.name) if o.name is not None else bundle_name(o.model, model.module, before, o.recipe)
    out = o.out or bundle_folder(name, target.id)
    if not o.dry_run:
        bundles.refuse_to_replace(out)
        held = bundles.what_is_in(out)
        if held is not None and held != (name, target.id):
            said = Notice(f"{out} holds {held[0]} for {held[1]}, which this build replaces")
            warnings.warn(said, stacklevel=4)
    if o.sign is not None:
        sign_bytes(b"", o.sign)
    if not o.allow_random and (nmse := channel_nmse(model)) is not None:
        say_untrained(o.model, nmse)
    return Source(model, name, out)


def compress(options: BuildOptions, model: LoadedModel) -> LoadedModel:
    """Apply the recipe."""
    if options.recipe is not None:
        from edgecsi.compress.post_training import compressed

        model = compressed(model, options.recipe, options.calib)
    if options.outputs:
        from edgecsi.models.entries import with_outputs

        chosen = {n: e for n, e in model.entries.items() if options.entry in (None, n)}
        model = replace(model, entries={**model.entries, **with_outputs(chosen, options.outputs)})
    return model


def lower(options: BuildOptions, name: str, model: LoadedModel, target: Target) -> Lowered:
    """Lower to kernels."""
    from edgecsi import lower as lowering
    from edgecsi.codegen.target_features import refuse_undeclared_features
    from edgecsi.kernels.records import known_records
    from edgecsi.reference import refuse_mixed_batches

    refuse_undeclared_features(target)
    records = known_records(target, options.records) if options.records is not None else None
    entries: list[PlannedEntry] = []
    for entry, part in model.entries.items():
        if options.entry in (None, entry):
            dump = _dump(options.dump_ir, entry)
            if options.batches:
                refuse_mixed_batches(part)
            entries += lowering.lower(part.module, part.inputs, entry, target, dump, options.batches, records)
    manifest = manifest_of(name, options.model, options.recipe, model, target, entries, options.build_number)
    return Lowered(manifest, entries, target)


def generate(lowered: Lowered, model: LoadedModel) -> Draft:
    """Generate and link the library."""
    from edgecsi.codegen.interface import render_header
    from edgecsi.codegen.library import build_library, gather

    manifest = lowered.manifest
    library = build_library(
        manifest.cname,
        lowered.entries,
        gather(lowered.entries),
        bundles.embedded_json(manifest),
        lowered.target,
    )
    golden = bundles.golden_npz(manifest.entries, golden_values(model, manifest.entries))
    return Draft(
        manifest,
        {manifest.library: library, manifest.header: render_header(manifest), "golden.npz": golden},
    )


def check(options: BuildOptions, draft: Draft, model: LoadedModel, target: Target) -> Draft:
    """Check the answer against PyTorch."""
    from edgecsi.codegen.interface import render_example

    def make(other: Target) -> Draft:
        plain = replace(options, dump_ir=None, records=None)
        return generate(lower(plain, draft.manifest.name, model, other), model)

    try:
        checked = compare(draft, model, target, make)
    except CheckFailed as error:
        raise _names_records(error, draft.manifest) from error
    return Draft(checked.manifest, {**checked.files, **render_example(checked.manifest)})


_RECORD = re.compile(r"record [0-9a-f]{8}")


def _names_records(error: CheckFailed, manifest: bundles.Manifest) -> CheckFailed:
    """A wrong answer, with the tuning records that had a part in it."""
    used = {
        f"{found[0]} ({layer.kernel} for {layer.name})"
        for entry in manifest.entries.values()
        for layer in entry.layers
        if (found := _RECORD.findall(layer.why))
    }
    if not used:
        return error
    return CheckFailed(
        error.what, error.why,
        f"build with --no-records; if that is right, one of these tuning records is not: {', '.join(sorted(used))}",
    )  # fmt: skip


def write(options: BuildOptions, out: Path, draft: Draft) -> bundles.Bundle:
    """Write the bundle."""
    key = options.sign
    signer = None if key is None else lambda data: sign_bytes(data, key)
    return bundles.write_bundle(out, draft.manifest, draft.files, signer)


STAGES = (load, compress, lower, generate, check, write)


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
