"""A weight as integer codes and a scale for every output."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_weight(weight: Tensor, bits: int = 8, floor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Symmetric codes per output: int8 ``[O, …]`` in ±(2^(bits-1) - 1), and their scale, float32 ``[O]``.

    Below 8 bits the scale is the one, of 20 shrunk ones, with the least squared error. Zeros stay zeros. A
    scale is at least `floor`, ``[O]``.
    """
    top = 2 ** (bits - 1) - 1
    flat = weight.detach().flatten(1).float()
    scale = flat.abs().amax(1) / top
    if bits < 8:
        scales = [scale * shrink for shrink in torch.linspace(1.0, 0.4, 20).tolist()]
        errors = [
            ((flat / _column(s)).round_().clamp_(-top, top) * _column(s) - flat).square().sum(1)
            for s in scales
        ]
        scale = torch.stack(scales)[torch.stack(errors).argmin(0), torch.arange(len(scale))]
    if floor is not None:
        scale = torch.maximum(scale, floor.float())
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = (flat / _column(scale)).round_().clamp_(-top, top)
    return codes.to(torch.int8).reshape(weight.shape), scale


def _column(scale: Tensor) -> Tensor:
    return scale.clamp_min(1e-30)[:, None]
