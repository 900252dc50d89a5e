"""What PyTorch answers: the reference that a library is held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecsi import verdict
from edgecsi.bundle import Entry, Manifest, Tensor
from edgecsi.errors import BundleError, EdgecsiError, ModelError, UsageError
from edgecsi.models.entries import outputs_named
from edgecsi.names import split_batch

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from edgecsi.models.entries import Part
    from edgecsi.models.load import LoadedModel

AT_ONCE = 64
"""Calls of a network in one of PyTorch, where it takes any batch."""


def reference_model(manifest: Manifest, model: str | None = None, weights: str | None = None) -> LoadedModel:
    """The PyTorch model that a bundle was built from.

    A bundle names its model, but only names of the zoo are looked up: a bundle may be a stranger's, and
    ``package.module:factory`` would run code.

    Args:
        manifest: of the bundle.
        model: MODEL as given to build, needed where the bundle's own is none of the zoo.
        weights: its weights, if they were not the shipped ones.

    Raises:
        UsageError: the bundle's model is none of the zoo, and no other was given.
        ModelError: the model cannot be loaded.
        BundleError: the bundle was built from other weights, or another network.
    """
    from edgecsi.models import registry
    from edgecsi.models.load import load_model

    spec = model or manifest.model.spec
    if model is None and not registry.ships(spec):
        raise UsageError(
            f"{manifest.name} was built from {spec}, which is no model of the zoo",
            "for safety, a bundle's word alone makes edgecsi run no other code and open no other file",
            f"pass --model {spec}" + (" --weights FILE" if ":" in spec and manifest.model.sha256 else ""),
        )
    whole = manifest.entries.get("full") or manifest.entries.get("encoder")  # a decoder's input is another
    shape = whole.inputs[0].shape if whole is not None and ":" in spec else None
    random = manifest.model.sha256 is None
    try:
        loaded = load_model(spec, weights, shape, allow_random=random)
    except ModelError as error:
        other: EdgecsiError | None = None
        with suppress(ModelError):  # another network may take its own example only
            other = _not_of(manifest, load_model(spec, weights, allow_random=random), spec)
        raise other or error from None
    if loaded.sha256 != manifest.model.sha256:
        raise BundleError(
            f"{manifest.name} was built from other weights than {weights or spec} has",
            f"sha256 {manifest.model.sha256 or '(no file)'} and {loaded.sha256 or '(no file)'}",
            "name the checkpoint with --weights, or build the bundle again",
        )
    if (wrong := _not_of(manifest, loaded, spec)) is not None:
        raise wrong
    return loaded


def _not_of(manifest: Manifest, model: LoadedModel, spec: str) -> BundleError | None:
    """What to raise if a bundle was not built from a model, by what its entries take and give."""
    for name, built in manifest.entries.items():
        if split_batch(name)[1] == 1 and not (name in model.entries and _fits(model.entries[name], built)):
            return BundleError(
                f"{manifest.name} was not built from {spec}",
                f"its entry {name} takes {_listed(built.inputs)} and gives {_listed(built.outputs)}",
                f"pass --model {manifest.model.spec}",
            )
    return None


def _fits(entry: Part, built: Entry) -> bool:
    """Whether an entry takes what a bundle's takes, and gives all that it gives."""
    takes = [tuple(x.shape[1:]) for x in entry.inputs] == [t.shape[1:] for t in built.inputs]
    return takes and len(outputs_named(entry, [t.name for t in built.outputs])) == len(built.outputs)


def _listed(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in tensors)


def refuse_mixed_batches(entry: Part) -> None:
    """Refuse an entry that answers a sample otherwise if others are beside it. Where the inputs have no axis of samples
    in common, a batch is call after call.

    Raises:
        ModelError: it does, or takes only the batch of its example.
    """
    import torch

    if not _have_samples(entry):
        return
    others = [
        1 - 2 * x.flip(-1) if x.is_floating_point() else x.flip(-1) for x in entry.inputs
    ]  # of other sums
    with torch.no_grad():
        alike = _takes_any_batch(entry, [torch.cat(two) for two in zip(entry.inputs, others, strict=True)])
    if not alike:
        raise ModelError(
            f"{entry.name} mixes the samples of a batch, or takes only the batch of its example",
            "two samples at once are answered otherwise than one by one: it sums, averages or normalises over the "
            "batch axis, or has the batch size in a view",
            "build without --batch: the library takes one sample a call",
        )


def pytorch(entry: Part, x: NDArray[Any]) -> NDArray[Any]:
    """PyTorch's answer of an entry with one input and one output; see :func:`answers`."""
    (y,) = answers(entry, [x])
    return y


def answers(entry: Part, x: Sequence[NDArray[Any]], *, at_once: bool = True) -> tuple[NDArray[Any], ...]:
    """PyTorch's answers; in large batches if the network takes them, as that is many times faster.

    Args:
        x: for every input ``[calls * shape[0], *shape[1:]]``; of scalars ``[calls]``.
    """
    import torch

    with torch.no_grad():
        parts = [outputs_of(entry, call) for call in calls_together(entry, x, AT_ONCE if at_once else 1)]
    return tuple(np.concatenate([np.atleast_1d(y.numpy()) for y in ys]) for ys in zip(*parts, strict=True))


def calls_together(entry: Part, x: Sequence[NDArray[Any]], most: int = AT_ONCE) -> list[list[torch.Tensor]]:
    """The inputs of up to `most` calls at once, if the network takes them so; else call after call."""
    many = most > 1 and _have_samples(entry) and _takes_any_batch(entry, next(calls_of(entry, x, 2), []))
    return list(calls_of(entry, x, most if many else 1))


def calls_of(entry: Part, x: Sequence[NDArray[Any]], at_once: int = 1) -> Iterator[list[torch.Tensor]]:
    """The inputs of call after call, or of several `at_once`."""
    import torch

    given = [
        torch.from_numpy(np.ascontiguousarray(a if e.is_floating_point() else a.astype(np.int32))).to(e.dtype)
        for a, e in zip(x, entry.inputs, strict=True)  # booleans too are int32 in a library
    ]
    rows = [len(e) if e.ndim else 1 for e in entry.inputs]
    for first in range(0, len(given[0]) // rows[0], at_once):
        some = [a[first * n : (first + at_once) * n] for a, n in zip(given, rows, strict=True)]
        yield [a if e.ndim else a[0] for a, e in zip(some, entry.inputs, strict=True)]


def outputs_of(entry: Part, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The tensors that an entry's module returns of one call, however they are packed; what it writes on stays."""
    import torch
    from torch.utils import _pytree

    leaves = _pytree.tree_leaves(entry.module(*(x.clone() for x in inputs)))
    return tuple(y.detach() for y in leaves if isinstance(y, torch.Tensor))  # it may be a parameter


def _have_samples(entry: Part) -> bool:
    """Whether all inputs have an axis of samples, of one length."""
    return all(e.ndim for e in entry.inputs) and len({e.shape[:1] for e in entry.inputs}) == 1


def _takes_any_batch(entry: Part, two: Sequence[torch.Tensor]) -> bool:
    """Whether two batches at once give what they give one by one; a network may be written for just one."""
    import torch

    try:
        together = outputs_of(entry, two)
        apart = zip(
            *(outputs_of(entry, half) for half in zip(*(x.chunk(2) for x in two), strict=True)), strict=True
        )
        return all(_same(y, torch.cat(parts)) for y, parts in zip(together, apart, strict=True))
    except Exception:  # the network may be the user's, and says in its own way that it takes one batch
        return False


def _same(y: torch.Tensor, expected: torch.Tensor) -> bool:
    near = verdict.OTHER_ENGINE
    return y.shape == expected.shape and verdict.difference(y.numpy(), expected.numpy()).max_rel_diff <= near
