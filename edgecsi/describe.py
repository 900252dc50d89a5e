"""The manifest of a build: what was made, from what, with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from edgecsi import bundle as bundles
from edgecsi.bundle.manifest import MOST
from edgecsi.errors import ModelError
from edgecsi.names import split_batch

if TYPE_CHECKING:
    from edgecsi.codegen.program import PlannedEntry
    from edgecsi.models.load import LoadedModel
    from edgecsi.target import Target


def manifest_of(
    name: str,
    spec: str,
    recipe: str | None,
    model: LoadedModel,
    target: Target,
    entries: Sequence[PlannedEntry],
    build_number: int | None,
) -> bundles.Manifest:
    """The manifest of a library that is planned; its check and files come later.

    Args:
        name: of the bundle. spec: MODEL as the user wrote it. recipe: that the build applied.
    """
    import torch

    from edgecsi.codegen.target_features import llvm_version

    return bundles.Manifest(
        name=name,
        library=f"lib{name}.so",
        header=f"{name}.h",
        created_with=bundles.Versions(
            version("edgecsi"), torch.__version__, version("apache-tvm"), version("apache-tvm-ffi"),
            llvm_version(), version("ziglang"),
        ),
        model=bundles.ModelOrigin(
            _without_folder(spec), model.metadata.get("model", model.name), model.sha256, recipe or model.recipe
        ),
        target=bundles.TargetInfo(
            target.id, target.arch, target.triple, target.mcpu, target.mattr, target.features, target.glibc,
            target.emulate,
        ),
        entries={entry.name: _entry(entry, model) for entry in entries},
        check=bundles.Check("not run", "the build has not come to it"),
        build_number=build_number,
    )  # fmt: skip


def _entry(entry: PlannedEntry, model: LoadedModel) -> bundles.Entry:
    part = model.entries[split_batch(entry.name)[0]]

    def named(names: Sequence[str], tensors: Sequence[bundles.Tensor]) -> tuple[bundles.Tensor, ...]:
        return tuple(replace(t, name=n) for n, t in zip(names, tensors, strict=True))

    inputs, outputs = named(part.input_names, entry.inputs), named(part.output_names, entry.outputs)
    _refuse_interface(entry.name, inputs, outputs)
    return bundles.Entry(
        inputs, outputs, entry.workspace, entry.macs, entry.weight_bytes,
        tuple(bundles.Layer(**call.report) for call in entry.calls),
    )  # fmt: skip


def _refuse_interface(
    entry: str, inputs: Sequence[bundles.Tensor], outputs: Sequence[bundles.Tensor]
) -> None:
    """What no bundle can have.

    Raises:
        ModelError: it is there.
    """
    for side, tensors, fix in (
        ("inputs", inputs, ""),
        ("outputs", outputs, ", or keep some (--keep-output)"),
    ):
        if len(tensors) > MOST:
            raise ModelError(
                f"{entry} has {len(tensors)} {side}",
                f"1 to {MOST} are possible",
                f"join some with torch.cat{fix}",
            )
        for tensor in tensors:
            if 0 in tensor.shape or len(tensor.shape) > MOST:
                raise ModelError(
                    f"{tensor.name} of {entry} has the shape {list(tensor.shape)}",
                    f"a tensor has at least one element, and at most {MOST} dimensions",
                    "leave it away, or reshape it",
                )


def _without_folder(model: str) -> str:
    """MODEL as the manifest names it: where a file lay is nobody's business and differs between machines."""
    return Path(model).name if model.endswith(".safetensors") or "/" in model.partition(":")[0] else model
