"""Make a network smaller: prune, quantise, cluster, factor, distil, by a recipe.

Names are imported when they are used, so that ``edgecsi --help`` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecsi.compress.run import (
        CompressResult,
        LayerCosts,
        Progress,
        apply_post_training,
        compress,
        layer_costs,
    )

__all__ = [
    "CompressResult",
    "LayerCosts",
    "Progress",
    "apply_post_training",
    "compress",
    "layer_costs",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("edgecsi.compress.run"), name)
