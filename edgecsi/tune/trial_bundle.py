"""A bundle that is measured and thrown away: planned entries, compiled and linked as a user's would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgecsi import bundle as bundles
from edgecsi.codegen.library import build_library, gather
from edgecsi.codegen.program import PlannedEntry
from edgecsi.target import Target

NAME = "candidates"


def trial_bundle(folder: Path, entries: Sequence[PlannedEntry], target: Target) -> bundles.Bundle:
    """Compile entries into a bundle without header, examples or golden values.

    Raises:
        ToolchainError: the compiler or the linker failed. BundleError: the disk refused.
    """
    manifest = bundles.Manifest(
        name=NAME, library=f"lib{NAME}.so", header=f"{NAME}.h",
        created_with=bundles.Versions(*(["tuning"] * 6)),
        model=bundles.ModelOrigin("candidates", "candidates", None, None),
        target=bundles.TargetInfo(
            target.id, target.arch, target.triple, target.mcpu, target.mattr, target.features, target.glibc,
            target.emulate,
        ),
        entries={e.name: _described(e) for e in entries},
        check=bundles.Check("not run", "tuning"),
    )  # fmt: skip
    library = build_library(NAME, entries, gather(entries), bundles.embedded_json(manifest), target)
    files: dict[str, bytes | Path] = {manifest.library: library, manifest.header: b""}
    return bundles.write_bundle(folder, manifest, files)


def _described(entry: PlannedEntry) -> bundles.Entry:
    inputs, outputs = (
        tuple(replace(tensor, name=f"{side}{number}") for number, tensor in enumerate(tensors))
        for side, tensors in (("x", entry.inputs), ("y", entry.outputs))
    )
    return bundles.Entry(
        inputs, outputs, entry.workspace, entry.macs, entry.weight_bytes,
        tuple(bundles.Layer(**call.report) for call in entry.calls),
    )  # fmt: skip
