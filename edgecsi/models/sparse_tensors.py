"""Pruned weights in a file: the values that are not zero, and a bit for each place.

In a ``.safetensors`` file ``NAME`` becomes ``NAME.values`` and ``NAME.mask``, and the metadata's ``sparse`` lists the
shapes by name. Ninety percent zeros make a file of fp32 weights eight times smaller, one of int8 weights four times.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

KEY = "sparse"
"""The key in a file's metadata; it belongs to that file's tensors alone."""
_LEAST_ZEROS = 0.5  # zeros; below, the mask and two entries are not worth it


def pack(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors with every mostly empty matrix packed, and what the metadata must say of them."""
    packed: dict[str, torch.Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in state.items():
        kept = tensor != 0
        if tensor.ndim != 2 or int(kept.sum()) > (1 - _LEAST_ZEROS) * tensor.numel():
            packed[name] = tensor
            continue
        shapes[name] = list(tensor.shape)
        packed[f"{name}.mask"] = _bits(kept)
        packed[f"{name}.values"] = tensor[kept]
    return packed, {KEY: json.dumps(shapes, sort_keys=True)} if shapes else {}


def unpack(
    state: Mapping[str, torch.Tensor], metadata: Mapping[str, str], most: int | None = None
) -> dict[str, torch.Tensor]:
    """The tensors as :func:`pack` was given them.

    Args:
        most: numbers that all of them may hold together, if that is known.

    Raises:
        ValueError: shapes, masks and values contradict each other, or claim more than `most`.
    """
    import numpy as np
    import torch

    shapes = json.loads(metadata.get(KEY, "{}"))
    if not isinstance(shapes, dict):
        raise ValueError("the list of sparse tensors is no table")
    whole = dict(state)
    claimed = 0
    for name, shape in shapes.items():
        mask, values = whole.pop(f"{name}.mask", None), whole.pop(f"{name}.values", None)
        if mask is None or values is None or name in whole:
            raise ValueError(f"{name} has no mask or no values")
        if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"{name} has the shape {shape!r}")
        size = math.prod(shape)
        claimed += size
        if most is not None and claimed > most:
            raise ValueError(f"with {name} it claims more numbers than the {most:,} of the network")
        if mask.dtype != torch.uint8 or mask.ndim != 1 or len(mask) != -(-size // 8) or values.ndim != 1:
            raise ValueError(f"the mask of {name} has {mask.numel()} bytes for {size} places")
        kept = torch.from_numpy(np.unpackbits(mask.numpy(), count=size)).bool()
        if int(kept.sum()) != len(values):
            raise ValueError(f"{name} has {len(values)} values for {int(kept.sum())} places")
        tensor = torch.zeros(size, dtype=values.dtype)
        tensor[kept] = values
        whole[name] = tensor.reshape(shape)
    return whole


def _bits(kept: torch.Tensor) -> torch.Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.packbits(kept.flatten().numpy()))
