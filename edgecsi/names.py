"""Names: of a bundle when nobody says, which is also the prefix of its C functions; of its folder; of batch entries."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgecsi.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def bundle_name(model: str, module: nn.Module, *recipes: str | None) -> str:
    """The name of a model and of what was done to it: ``csinet-cr4``, ``csinet-cr4-int8-dynamic``, ``mynet``.

    Builds of one network that differ in their recipe have different names, so that one program can link both.

    Args:
        model: MODEL as the user wrote it. module: the network it stands for. recipes: names or files of what was
            done to it, in order.
    """
    base = model
    if ":" in model:  # a factory is mostly called `make`: the network's own class says more, else the file
        own = not type(module).__module__.startswith("torch.")
        source = model.rpartition(":")[0]
        base = (
            type(module).__name__
            if own
            else Path(source).stem
            if "/" in source or source.endswith(".py")
            else source
        )
    elif model.endswith(".safetensors"):
        base = Path(model).stem
    return as_name("-".join([base, *(Path(recipe).stem for recipe in recipes if recipe)]))


def as_name(text: str) -> str:
    """Text as a bundle's name: small letters, digits and dashes.

    Raises:
        InputError: nothing of it can be one.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()
    if not name or not name[0].isalpha() or len(name) > 60:
        raise InputError(
            f"no name for the bundle can be made of {text!r}",
            "it becomes the prefix of C functions",
            "pass --name with a name that begins with a letter",
        )
    return name


def bundle_folder(name: str, target: str) -> Path:
    """Where a bundle goes without ``-o``: builds for several targets stand side by side."""
    return Path(f"{name}-{target}")


def batch_entry(entry: str, batch: int) -> str:
    """The name of the entry that takes `batch` inputs at once: ``decoder_b8``."""
    return f"{entry}_b{batch}"


def batch_shape(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """The shape of a tensor of `batch` calls at once: call after call along the first axis; single numbers get one."""
    return (shape[0] * batch, *shape[1:]) if shape else (batch,)


def split_batch(name: str) -> tuple[str, int]:
    """The model's entry behind an entry of a bundle, and how many inputs it takes at once: ``decoder``, 8."""
    source, mark, batch = name.rpartition("_b")
    return (source, int(batch)) if mark and batch.isdecimal() and len(batch) < 6 else (name, 1)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names that a wrong one may have meant, likeliest first; capitals, ``_`` and ``-`` do not matter."""

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9+]", "", text.lower())

    spelled: dict[str, str] = {}
    for one in known:
        spelled.setdefault(plain(one), one)
    if same := spelled.get(plain(name)):
        return [same]
    return [spelled[one] for one in difflib.get_close_matches(plain(name), spelled, 3, 0.55)]


def suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    """A line for an error about a wrong name: the nearest ones, or `otherwise`."""
    found = nearest(name, known)
    return f"did you mean {' or '.join(found)}?" if found else otherwise
