"""CLNet: S. Ji, M. Li, "CLNet: complex input lightweight neural network designed for massive MIMO CSI
feedback", IEEE WCL 2021 (arXiv 2102.07507)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from edgecsi.models.blocks import (
    CODEWORD,
    ENTRIES,
    Autoencoder,
    ConvBN,
    initialise,
)
from edgecsi.models.multi_resolution import CRDecoder, merging, wide_branch

FUSED = 32
"""Channels into which the 1×1 convolution mixes the real and the imaginary part."""


class SpatialGate(nn.Module):
    """Weights every position by a sigmoid of its largest and its mean channel; keeps the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3x3 = ConvBN(2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([torch.amax(x, 1, keepdim=True), torch.mean(x, 1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv3x3(pooled))


class SqueezeExcite(nn.Module):
    """Weights every channel by a two-layer function of the channel means; keeps the shape."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.excite(torch.relu(self.squeeze(torch.mean(x, (2, 3))))))
        return x * weights[:, :, None, None]


class Encoder(nn.Module):
    """A gated spatial branch and a channel-weighted complex branch, merged by 1×1, then dense:
    ``[B, 2, 32, 32] -> [B, M]``."""

    def __init__(self, codeword: int) -> None:
        super().__init__()
        self.spatial = wide_branch(2, 2, 9, gate=SpatialGate())
        self.fusion = nn.Sequential(OrderedDict(conv1x1=ConvBN(2, FUSED, 1), weight=SqueezeExcite(FUSED)))
        self.merge = merging(2 + FUSED)
        self.fc = nn.Linear(ENTRIES, codeword)

    def forward(self, x: Tensor) -> Tensor:
        merged = self.merge(torch.cat([self.spatial(x), self.fusion(x)], dim=1))
        codeword: Tensor = self.fc(merged.flatten(1))
        return codeword


def clnet(cr: int) -> Autoencoder:
    """CLNet at compression ratio 1/``cr`` (4, 8, 16, 32 or 64), random weights.

    Its decoder is CRNet's with convolutions of length 3 and a hard sigmoid relu6(x + 3) / 6."""
    model = Autoencoder(Encoder(CODEWORD[cr]), CRDecoder(CODEWORD[cr], 3, nn.Hardsigmoid()))
    initialise(model)
    return model
