"""ConvCsiNet: a CSI network without dense layers, convolutions with pooling down and upsampling up.

Z. Cao, W.-T. Shih, J. Guo, C.-K. Wen, S. Jin, "Lightweight convolutional neural networks for CSI feedback in
massive MIMO", IEEE Communications Letters 2021 (arXiv 2005.00438). The widths here are our own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from edgecsi.models.blocks import CODEWORD, Autoencoder, ConvBN, initialise, leaky_relu, start_small
from edgecsi.models.csinet import RefineNet

WIDTHS = (16, 32, 64, 128)
"""Channels at 32×32, 16×16, 8×8 and 4×4. The codeword is the 2×2 that follows, M/4 channels."""

Layer = Callable[[int, int], nn.Module]
"""Makes one layer from (input channels, output channels), normalised, before its activation."""


def conv3x3(inputs: int, outputs: int) -> nn.Module:
    return ConvBN(inputs, outputs, 3)


class Encoder(nn.Module):
    """Four layers, each followed by 2×2 average pooling: ``[B, 2, 32, 32] -> [B, M]``."""

    def __init__(self, codeword: int, layer: Layer = conv3x3) -> None:
        super().__init__()
        parts: OrderedDict[str, nn.Module] = OrderedDict(stem=ConvBN(2, WIDTHS[0], 3), relu0=leaky_relu())
        widths = [*WIDTHS, codeword // 4]
        for i, (inputs, outputs) in enumerate(pairwise(widths), 1):
            parts[f"layer{i}"] = layer(inputs, outputs)
            # the codeword itself is not rectified: half of its range would be lost
            if i < len(WIDTHS):
                parts[f"relu{i}"] = leaky_relu()
            parts[f"pool{i}"] = nn.AvgPool2d(2)
        self.features = nn.Sequential(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.features(x), 1)


class Decoder(nn.Module):
    """Four upsampled layers (nearest neighbour), then CsiNet's refinement: ``[B, M] -> [B, 2, 32, 32]``."""

    def __init__(self, codeword: int, layer: Layer = conv3x3) -> None:
        super().__init__()
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        widths = [codeword // 4, *reversed(WIDTHS)]
        for i, (inputs, outputs) in enumerate(pairwise(widths), 1):
            parts[f"up{i}"] = nn.Upsample(scale_factor=2, mode="nearest")
            parts[f"layer{i}"] = layer(inputs, outputs)
            parts[f"relu{i}"] = leaky_relu()
        self.features = nn.Sequential(parts)
        self.project = ConvBN(WIDTHS[0], 2, 3)
        self.refine = nn.Sequential(RefineNet(), RefineNet())
        self.conv3x3 = ConvBN(2, 2, 3)
        self.sigmoid = nn.Sigmoid()
        start_small(self.conv3x3)

    def forward(self, codeword: Tensor) -> Tensor:
        coarse = self.project(self.features(codeword.reshape(-1, codeword.shape[1] // 4, 2, 2)))
        x: Tensor = self.sigmoid(self.conv3x3(self.refine(coarse)))
        return x


def convcsinet(cr: int) -> Autoencoder:
    """ConvCsiNet at compression ratio 1/``cr`` (4, 8, 16, 32 or 64), random weights."""
    return build(cr, conv3x3)


def build(cr: int, layer: Layer) -> Autoencoder:
    """The network with another kind of layer in place of the 3×3 convolutions between stem and projection."""
    model = Autoencoder(Encoder(CODEWORD[cr], layer), Decoder(CODEWORD[cr], layer))
    initialise(model)
    return model
