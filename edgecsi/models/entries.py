"""The entries of a network: ``full``, and ``encoder`` and ``decoder`` where it has these halves."""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from edgecsi.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """One compilable part of a network: ``encoder``, ``decoder`` or ``full``.

    ``module`` is in eval mode. Mostly it maps one float32 tensor to one; ``more_inputs`` are the examples of further
    arguments, the names are those of arguments and of what is returned (keys of dictionaries, else ``y``, ``y1``, …).
    ``note`` is a line for the user, if there is something to say.
    """

    name: str
    module: nn.Module
    example_input: Tensor
    more_inputs: tuple[Tensor, ...] = ()
    input_names: tuple[str, ...] = ("x",)
    output_names: tuple[str, ...] = ("y",)
    note: str = ""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Examples of all its inputs."""
        return (self.example_input, *self.more_inputs)


_COMPLEX = (
    "its encoder gives complex numbers, and a library real ones, so it is built as one; with torch.view_as_real where "
    "the encoder ends and torch.view_as_complex where the decoder begins, it has both"
)


def runs(module: nn.Module, examples: Sequence[Tensor]) -> bool:
    """Whether the module takes its examples as it is."""
    import torch

    try:
        with torch.no_grad():
            module(*examples)
    except Exception:  # the network may be the user's; who wants to know why runs it again
        return False
    return True


def entries_of(name: str, module: nn.Module, example: Tensor, *more: Tensor) -> dict[str, Part]:
    """The compilable parts of a network, each tried once.

    Children called encoder and decoder are halves if the one takes the example, the other takes what it gives, and
    both together answer what the network answers; methods encode and decode are taken at their word.

    Raises:
        ModelError: a part does not run, or returns no tensors.
    """
    full, answers = _entry(name, "full", module, (example, *more))
    if more:
        return {"full": full}
    children = dict(module.named_children())
    if _has_method(module, "encode") and _has_method(module, "decode"):
        try:
            encoder, codewords = _entry(name, "encoder", _method(module, "encode"), (example,))
            if any(t.is_complex() for t in codewords):
                return {"full": replace(full, note=_COMPLEX)}
            decoder, _ = _entry(name, "decoder", _method(module, "decode"), tuple(codewords))
        except ModelError as error:
            why = f"methods encode and decode are no halves of it, so it is built as one ({error.what}: {error.why})"
            return {"full": replace(full, note="; ".join(filter(None, (full.note, why))))}
    elif "encoder" in children and "decoder" in children:
        try:
            encoder, codewords = _entry(name, "encoder", children["encoder"], (example,))
            if any(t.is_complex() for t in codewords):
                return {"full": replace(full, note=_COMPLEX)}
            decoder, again = _entry(name, "decoder", children["decoder"], tuple(codewords))
        except ModelError as error:
            return {"full": _with_note(full, error.what)}
        if len(codewords) != 1 or len(again) != len(answers) or not _alike(again, answers):
            return {"full": _with_note(full, "decoder(encoder(x)) is not what the network answers")}
    else:
        return {"full": full}
    return {"encoder": encoder, "decoder": decoder, "full": full}


def with_outputs(entries: Mapping[str, Part], names: Sequence[str]) -> dict[str, Part]:
    """Entries that answer some of their outputs only, in the order of `names`; those with one output stay as they are,
    and an encoder beside its decoder, which takes all it gives.

    Raises:
        UsageError: a name is none of any entry's outputs, or an entry would answer nothing.
    """
    known = [name for entry in entries.values() for name in entry.output_names]
    found: dict[str, Part] = {}
    for entry in entries.values():
        kept = [entry.output_names.index(name) for name in names if name in entry.output_names]
        if unknown := [name for name in names if name not in known]:
            raise UsageError(
                f"no entry has an output {unknown[0]!r}", f"there are {', '.join(known)}", "name one of these"
            )
        if entry.name == "encoder" and "decoder" in entries:
            found[entry.name] = entry
            continue
        if len(entry.output_names) > 1 and not kept:
            raise UsageError(
                f"{entry.name} would answer nothing",
                f"its outputs are {', '.join(entry.output_names)}",
                "keep one of them, or build another --entry",
            )
        if len(entry.output_names) > 1:
            entry = replace(
                entry,
                module=_some_outputs(entry.module, kept),
                output_names=tuple(entry.output_names[k] for k in kept),
            )
        found[entry.name] = entry
    return found


def outputs_named(entry: Part, names: Sequence[str]) -> list[int]:
    """Which of an entry's outputs have these names, in their order; all, if the names are others."""
    if set(names) <= set(entry.output_names):
        return [entry.output_names.index(name) for name in names]
    return list(range(len(entry.output_names)))


def _some_outputs(module: nn.Module, kept: Sequence[int]) -> nn.Module:
    from torch import Tensor, nn
    from torch.utils import _pytree

    class SomeOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *x: Tensor) -> Any:
            tensors = [leaf for leaf in _pytree.tree_leaves(self.model(*x)) if isinstance(leaf, Tensor)]
            some = tuple(tensors[k] for k in kept)
            return some if len(some) > 1 else some[0]

    return SomeOutputs().eval()


def _has_method(module: nn.Module, name: str) -> bool:
    """Whether there is one, without asking properties and ``__getattr__``, which may answer or raise anything."""
    found = inspect.getattr_static(module, name, None)
    return callable(getattr(found, "__func__", found)) or name in module._modules


def _with_note(full: Part, why: str) -> Part:
    return replace(
        full,
        note=f"children encoder and decoder are no halves of it, so it is built as one ({why}); "
        "methods encode and decode would be halves",
    )


def _alike(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    import torch

    return all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-3, equal_nan=True)
        for a, b in zip(found, wanted, strict=True)
    )


def _entry(
    model: str, entry: str, module: nn.Module, examples: tuple[Tensor, ...]
) -> tuple[Part, list[Tensor]]:
    """An entry and what it answers to its examples."""
    import torch
    from torch.utils import _pytree

    given = [x.clone() for x in examples]
    try:
        with torch.no_grad():
            y = module(*given)
    except Exception as error:  # the network may be the user's: its failure is the model's, in its own words
        shapes = " and ".join(str(list(x.shape)) for x in examples)
        raise ModelError(
            f"{model}: {entry} does not run on an input of shape {shapes}",
            " ".join(f"{type(error).__name__}: {error}".split())[:300],
            "check --input-shape, or the factory's example input",
        ) from error
    writes = not all(map(torch.equal, given, examples))
    answered, others = tensors_only(y)
    leaves, _ = _pytree.tree_flatten_with_path(answered)
    tensors = [(path, leaf) for path, leaf in leaves if leaf is not None]
    if not tensors:
        raise ModelError(
            f"{model}: {entry} returns {others[0] if others else 'None'}",
            "an entry returns tensors: one, or several in tuples, lists, dictionaries and data classes",
            "return torch.Tensor",
        )
    outer = {"encoder": "codeword"}.get(entry, "y")
    inner = {"decoder": "codeword"}.get(entry, "x")
    takes = _distinct(_arguments(module, len(examples)), inner) if len(examples) > 1 else (inner,)
    names = _distinct([*takes, *(_path(path) for path, _ in tensors)], outer)[len(takes) :]
    answers = [t for _, t in tensors]
    wide = (torch.float16, torch.bfloat16, torch.float64)
    plain = not others and _pytree.tree_structure(answered) == _pytree.tree_structure(y)
    if writes or not plain or any(t.dtype in wide for t in (*examples, *answers)):
        module = _at_the_border(module, [x.dtype for x in examples], writes)
        examples = tuple(x.float() if x.dtype in wide else x for x in examples)
    note = f"left out of its answers, as no tensors: {', '.join(others)}" if others else ""
    return Part(entry, module, examples[0], examples[1:], takes, names, note), answers


def tensors_only(value: Any) -> tuple[Any, list[str]]:
    """What a module returns, data classes and their like as dictionaries, and None in the place of what is no tensor;
    and the types of that."""
    import torch

    others: list[str] = []

    def only(value: Any) -> Any:
        if value is None or isinstance(value, torch.Tensor):
            return value
        if is_dataclass(value) and not isinstance(value, type):
            return {f.name: only(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, Mapping):
            found = {k: only(v) for k, v in value.items()}
            return OrderedDict(found) if type(value) is OrderedDict else found
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(only, value))
        if isinstance(value, list | tuple | deque):
            return (list if type(value) is list else tuple)(map(only, value))
        others.append(type(value).__name__)
        return None

    return only(value), others


def _at_the_border(module: nn.Module, types: Sequence[torch.dtype], writes: bool) -> nn.Module:
    """A module that takes and returns what a library does: float32 where the module has other floats, tensors and
    containers of them only; and leaves its inputs as they are."""
    import torch
    from torch import nn
    from torch.utils import _pytree

    def single(value: Any) -> Any:
        floats = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.float() if floats else value

    class AtTheBorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *x: Tensor) -> Any:
            given = (t.to(dtype, copy=writes) for t, dtype in zip(x, types, strict=True))
            return _pytree.tree_map(single, tensors_only(self.model(*given))[0])

    return AtTheBorder().eval()


def _arguments(module: nn.Module, count: int) -> list[str]:
    names = [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.kind <= p.POSITIONAL_OR_KEYWORD
    ]
    return names[:count] if len(names) >= count else [""] * count


def _path(keys: Any) -> str:
    """What dictionaries call an output; positions have no name."""
    parts = [str(k.key) for k in keys if hasattr(k, "key")] + [
        str(k.name) for k in keys if hasattr(k, "name")
    ]
    return re.sub(r"\W+", "_", "_".join(parts)).strip("_")


def _distinct(names: Sequence[str], default: str) -> tuple[str, ...]:
    """C identifiers, each once; the first without a name is `default`, the next `default`1, …"""
    found: list[str] = []
    unnamed = 0
    for name in names:
        good = name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,50}", name) else ""
        if not good:
            good = default if unnamed == 0 else f"{default}{unnamed}"
            unnamed += 1
        base, number = good, 1
        while good in found:
            good, number = f"{base}_{number}", number + 1
        found.append(good)
    return tuple(found)


def _method(module: nn.Module, name: str) -> nn.Module:
    """A method as a module of its own, as the exporter wants it."""
    from torch import nn

    class Method(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *x: Tensor) -> Any:
            return getattr(self.model, name)(*x)

    return Method().eval()
