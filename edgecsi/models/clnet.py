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
    leaky_relu,
    start_small,
    to_image,
)

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
        self.spatial = nn.Sequential(
            OrderedDict(
                conv3x3=ConvBN(2, 2, 3),
                relu1=leaky_relu(),
                conv1x9=ConvBN(2, 2, (1, 9)),
                relu2=leaky_relu(),
                conv9x1=ConvBN(2, 2, (9, 1)),
                gate=SpatialGate(),
            )
        )
        self.fusion = nn.Sequential(OrderedDict(conv1x1=ConvBN(2, FUSED, 1), weight=SqueezeExcite(FUSED)))
        self.merge = nn.Sequential(
            OrderedDict(relu1=leaky_relu(), conv1x1=ConvBN(2 + FUSED, 2, 1), relu2=leaky_relu())
        )
        self.fc = nn.Linear(ENTRIES, codeword)

    def forward(self, x: Tensor) -> Tensor:
        merged = self.merge(torch.cat([self.spatial(x), self.fusion(x)], dim=1))
        codeword: Tensor = self.fc(merged.flatten(1))
        return codeword


class CRBlock(nn.Module):
    """CRNet's block with 1×3 and 3×1 in place of 1×9 and 9×1."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(
            OrderedDict(
                conv3x3=ConvBN(2, 7, 3),
                relu1=leaky_relu(),
                conv1x3=ConvBN(7, 7, (1, 3)),
                relu2=leaky_relu(),
                conv3x1=ConvBN(7, 7, (3, 1)),
            )
        )
        self.narrow = nn.Sequential(
            OrderedDict(conv1x5=ConvBN(2, 7, (1, 5)), relu=leaky_relu(), conv5x1=ConvBN(7, 7, (5, 1)))
        )
        self.relu1 = leaky_relu()
        self.merge = ConvBN(14, 2, 1)
        self.relu2 = leaky_relu()

    def forward(self, x: Tensor) -> Tensor:
        merged = self.merge(self.relu1(torch.cat([self.wide(x), self.narrow(x)], dim=1)))
        refined: Tensor = self.relu2(merged + x)
        return refined


class Decoder(nn.Module):
    """Dense, 5×5 convolution, two CRBlocks, hard sigmoid relu6(x + 3) / 6: ``[B, M] -> [B, 2, 32, 32]``."""

    def __init__(self, codeword: int) -> None:
        super().__init__()
        self.fc = nn.Linear(codeword, ENTRIES)
        self.conv5x5 = ConvBN(2, 2, 5)
        self.relu = leaky_relu()
        blocks = [CRBlock(), CRBlock()]
        self.blocks = nn.Sequential(*blocks)
        self.sigmoid = nn.Hardsigmoid()
        start_small(self.conv5x5, *(block.merge for block in blocks))

    def forward(self, codeword: Tensor) -> Tensor:
        x: Tensor = self.sigmoid(self.blocks(self.relu(self.conv5x5(to_image(self.fc(codeword))))))
        return x


def clnet(cr: int) -> Autoencoder:
    """CLNet at compression ratio 1/``cr`` (4, 8, 16, 32 or 64), random weights."""
    model = Autoencoder(Encoder(CODEWORD[cr]), Decoder(CODEWORD[cr]))
    initialise(model)
    return model
