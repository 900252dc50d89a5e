"""How many bytes the weights of a network take, stored compactly: an estimate until a library is built."""

from __future__ import annotations

import gzip

import torch
from torch import Tensor, nn

from edgecsi.models.compressed.layers import ClusteredLinear, CompressedLayer

_BLOCKS = ((1, 1), (4, 1), (8, 1), (16, 1), (16, 4), (4, 4))
_INDEX = 2  # bytes that say where a block lies
_POINTER = 4  # bytes per row of blocks


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all weights and biases, every dense layer in its smallest form.

    A dense layer is stored whole, but for rows and columns of zeros, with 2 bytes for the place of each that is left;
    or as its non-zero blocks (the best of a few shapes) with 2 bytes each for their place and 4 a row of blocks.
    Weights that are half-precision numbers take 2 bytes, integer ones `bits`, clustered ones log2(entries) and the table.
    """
    total = 0.0
    for part in module.modules():
        if isinstance(part, CompressedLayer):
            tensors = part.tensors()
            bits = part.attributes().get("bits", 8)
            if isinstance(part, ClusteredLinear):
                bits = max(1, (len(tensors["table"]) - 1).bit_length())
                weight = tensors["table"][tensors["index"].long()]
            else:
                weight = tensors["weight"]
            total += _weight_bytes(weight, bits / 8)
            for name, tensor in tensors.items():
                if name not in ("weight", "index"):
                    total += tensor.numel() * tensor.element_size()
            continue
        for name, tensor in part.named_parameters(recurse=False):
            half = tensor.ndim == 2 and bool((tensor.half().float() == tensor).all())
            size = 2.0 if half else 4.0
            total += _weight_bytes(tensor, size) if name == "weight" else tensor.numel() * size
        if isinstance(part, nn.BatchNorm2d):
            # folded into the convolution before it, which gains a bias
            total -= 4 * part.num_features
    return round(total)


def zipped_bytes(module: nn.Module) -> int:
    """Bytes of all tensors as they are, after gzip, for comparison with papers that count so."""
    tensors = (tensor.detach().contiguous().numpy().tobytes() for tensor in module.state_dict().values())
    return len(gzip.compress(b"".join(tensors), 6))


def density(weight: Tensor) -> float:
    """Share of a weight that is not zero."""
    return float(torch.count_nonzero(weight)) / weight.numel()


def densities(module: nn.Module) -> dict[str, float]:
    """Share of non-zero weights of every dense layer, by name."""
    found = {}
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if hasattr(part, "index") and hasattr(part, "table"):
            weight = part.table[part.index.long()]
        if isinstance(weight, Tensor) and weight.ndim == 2:
            found[name] = density(weight)
    return found


def _weight_bytes(weight: Tensor, size: float) -> float:
    dense = weight.numel() * size
    if weight.ndim != 2:
        return dense
    nonzero = (weight != 0).float()
    kept = [float(nonzero.amax(axis).sum()) for axis in (1, 0)]
    listed = sum(count for count, every in zip(kept, weight.shape, strict=True) if count < every)
    best = min(dense, kept[0] * kept[1] * size + _INDEX * listed)
    for rows, columns in _BLOCKS:
        if weight.shape[0] % rows == 0 and weight.shape[1] % columns == 0:
            blocks = nonzero.reshape(weight.shape[0] // rows, rows, -1, columns).amax((1, 3))
            used = float(blocks.sum())
            pointers = _POINTER * (len(blocks) + 1)
            best = min(best, used * (rows * columns * size + _INDEX) + pointers)
    return best
