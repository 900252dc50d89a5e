"""What a bundle is called when nobody says: its name, which is also the prefix of its C functions, and its folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgecsi.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def bundle_name(model: str, module: nn.Module, recipe: str | None) -> str:
    """The name of a model and of what was done to it: ``csinet-cr4``, ``csinet-cr4-int8-dynamic``, ``mynet``.

    Builds of one network that differ in their recipe have different names, so that one program can link both.

    Args:
        model: MODEL as the user wrote it. module: the network it stands for. recipe: ``--recipe``, name or file.
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
    return as_name(f"{base}-{Path(recipe).stem}" if recipe else base)


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
