"""Other engines made ready: the bundle's network, converted for each and checked against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi import verdict
from edgecsi.bench.measure import Call
from edgecsi.bench.peers import Array, Peer, Run, RunSeveral, Several, find_peers
from edgecsi.bench.result import Skipped
from edgecsi.bundle import Manifest
from edgecsi.errors import CheckFailed, ToolchainError
from edgecsi.names import split_batch
from edgecsi.progress import Progress
from edgecsi.verdict import Difference

if TYPE_CHECKING:
    from torch import nn

    from edgecsi.models.entries import Part

Loader = Callable[[Manifest], "nn.Module"]


@dataclass(frozen=True)
class Prepared:
    """Engines ready to be timed, and those that are not."""

    runs: Mapping[str, Run | RunSeveral]
    answers: Mapping[str, Difference]
    versions: Mapping[str, str]
    skipped: list[Skipped]

    def calls(self, inputs: Sequence[Array]) -> dict[str, Call]:
        """Each engine as a call without arguments, on these inputs."""

        def bound(run: Run | RunSeveral) -> Call:
            return lambda: run(*inputs)

        return {name: bound(run) for name, run in self.runs.items()}


def prepare_peers(
    module: nn.Module,
    inputs: Sequence[Array],
    entry: str,
    names: Sequence[str],
    progress: Progress | None = None,
) -> Prepared:
    """Converts a model for each engine and checks its answer against PyTorch's.

    An engine that is not installed, cannot convert the network or answers wrongly is skipped with its reason.

    Args:
        module: the model, in eval mode, float32.
        inputs: of the entry, float32 or int32.
        entry: which part of the model.
        names: of the engines.
        progress: told which engine is being prepared.

    Raises:
        UsageError: an unknown engine, or the model has no such entry.
    """
    peers = find_peers(names)
    expected = pytorch_outputs(module, inputs, entry) if peers else ()
    plain = len(inputs) == len(expected) == 1 and inputs[0].dtype == expected[0].dtype == np.float32
    runs: dict[str, Run | RunSeveral] = {}
    answers: dict[str, Difference] = {}
    skipped: list[Skipped] = []
    for index, peer in enumerate(peers):
        if progress is not None:
            progress(index, len(peers), f"preparing {peer.name}")
        if (reason := peer.available()) is not None:
            skipped.append(Skipped(peer.name, reason, peer.install))
            continue
        try:
            run, found = _tried(peer, module, inputs, entry, plain)
            apart = [
                verdict.require(peer.name, y, e, peer.allowed) for y, e in zip(found, expected, strict=True)
            ]
            answers[peer.name] = max(apart, key=lambda one: one.max_rel_diff)
        except (ToolchainError, CheckFailed) as error:
            skipped.append(Skipped(peer.name, f"{error.what}: {error.why}", error.fix))
            continue
        runs[peer.name] = run
    versions = {peer.name: peer.version() for peer in peers if peer.name in runs}
    return Prepared(runs, answers, versions, skipped)


def _tried(
    peer: Peer, module: nn.Module, inputs: Sequence[Array], entry: str, plain: bool
) -> tuple[Run | RunSeveral, Sequence[Array]]:
    """An engine made ready, and what it answers."""
    if plain:
        run = peer.prepare(module, inputs[0], entry)
        return run, [run(*inputs)]
    if not isinstance(peer, Several):
        raise ToolchainError(
            f"{peer.name} cannot take this network",
            "with this engine networks of one input and one output can be measured, both of real numbers",
            f"leave {peer.name} out of --against",
        )
    several = peer.prepare_several(module, inputs, entry)
    return several, several(*inputs)


def require_installed(names: Sequence[str]) -> None:
    """Refuse before the work an engine that could not be measured in it.

    Raises:
        UsageError: an unknown engine. ToolchainError: one that is not installed.
    """
    for peer in find_peers(names):
        if (reason := peer.available()) is not None:
            raise ToolchainError(
                f"{peer.name} cannot be measured: {reason}", "it was asked for with --against", peer.install
            )


def pytorch_output(module: nn.Module, x: Array, entry: str) -> Array:
    """What PyTorch answers, float32."""
    from edgecsi.bench.peers.pytorch import PyTorch

    return PyTorch().prepare(module, x, entry)(x)


def pytorch_outputs(module: nn.Module, inputs: Sequence[Array], entry: str) -> tuple[Array, ...]:
    """All that PyTorch answers."""
    from edgecsi.bench.peers.pytorch import PyTorch

    return PyTorch().prepare_several(module, inputs, entry)(*inputs)


def checked_module(
    load: Loader, manifest: Manifest, entry: str, inputs: Sequence[Array], expected: Sequence[Array]
) -> nn.Module:
    """The model for the peers; it has the bundle's weights, unless these are quantised."""
    module, spec = load(manifest), manifest.model.spec
    if manifest.model.recipe is not None or any(layer.bits < 32 for layer in manifest.entries[entry].layers):
        return module
    try:
        for y, right in zip(pytorch_outputs(module, inputs, entry), expected, strict=True):
            verdict.require(spec, y, right, verdict.SAME_WEIGHTS)
        return module
    except CheckFailed as error:
        raise CheckFailed(
            f"{spec} is not the model that the bundle was built from",
            f"{error.why}, so other engines would run other weights",
            "name the checkpoint with --weights, or build the bundle again",
        ) from None


def fp32_model(manifest: Manifest, model: str | None, weights: str | None) -> nn.Module:
    """What the other engines run: the bundle's model, or where that has layers of edgecsi's own (int8,
    clustered), the uncompressed network with the weights it is made with, which costs the same with any."""
    import json

    from edgecsi.models import factories, registry
    from edgecsi.models.compressed.layers import CompressedLayer
    from edgecsi.models.entries import entries_of
    from edgecsi.reference import reference_model

    loaded = reference_model(manifest, model, weights)
    if not any(isinstance(part, CompressedLayer) for part in loaded.module.modules()):
        return _with_outputs_of(manifest, loaded.module, loaded.entries)
    spec = model or manifest.model.spec
    if ":" in spec:
        plain = factories.make(spec)[1].eval()
    else:
        plain = registry.create(loaded.name, **json.loads(loaded.metadata.get("config", "{}"))).eval()
    return _with_outputs_of(manifest, plain, entries_of(loaded.name, plain, *loaded.inputs))


def _with_outputs_of(manifest: Manifest, module: nn.Module, entries: Mapping[str, Part]) -> nn.Module:
    """The model; its entries as they were built where they give some of their outputs only, take integers, or are no
    longer what the model is."""
    from torch import nn

    from edgecsi.models.entries import outputs_named, with_outputs

    built = {split_batch(name)[0]: entry for name, entry in manifest.entries.items()}
    same = all(
        outputs_named(entries[name], [t.name for t in e.outputs]) == [*range(len(entries[name].output_names))]
        for name, e in built.items()
    )
    whole = entries["full"].module is module
    if same and whole and all(x.is_floating_point() for name in built for x in entries[name].inputs):
        return module
    kept = {
        name: _of_its_types(
            with_outputs({name: entries[name]}, [tensor.name for tensor in entry.outputs])[name]
        )
        for name, entry in built.items()
    }

    class Entries(nn.Module):
        """Beside the model, not in it: a half that is a method of the model holds all of it."""

        def forward(self, *inputs: Any) -> Any:
            return self.get_submodule("full")(*inputs)

    found = Entries()
    for name, part in kept.items():
        setattr(found, name, part)
    return found.eval()


def _of_its_types(entry: Part) -> nn.Module:
    """An entry's module that takes int32 for all integers, as a library does."""
    from torch import Tensor, nn

    if all(x.is_floating_point() for x in entry.inputs):
        return entry.module

    class OfItsTypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = entry.module

        def forward(self, *x: Tensor) -> object:
            return self.model(*(t.to(like.dtype) for t, like in zip(x, entry.inputs, strict=True)))

    return OfItsTypes().eval()
