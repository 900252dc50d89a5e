"""Make a network smaller: prune, quantise, cluster, factor, distil, by a recipe.

Names are imported when they are used, so that ``edgecsi --help`` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecsi.compress.post_training import apply_post_training
    from edgecsi.compress.run import CompressProgress, CompressResult, compress
    from edgecsi.compress.sensitivity import LayerCosts, layer_costs

_HOME = {
    "CompressResult": "run",
    "LayerCosts": "sensitivity",
    "CompressProgress": "run",
    "apply_post_training": "post_training",
    "compress": "run",
    "layer_costs": "sensitivity",
}

__all__ = [
    "CompressProgress",
    "CompressResult",
    "LayerCosts",
    "apply_post_training",
    "compress",
    "layer_costs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"edgecsi.compress.{_HOME[name]}"), name)
