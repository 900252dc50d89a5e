"""What CRNet and CLNet share: branches of small and of long, thin convolutions side by side."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from edgecsi.models.blocks import ENTRIES, ConvBN, leaky_relu, start_small, to_image


def wide_branch(inputs: int, channels: int, length: int, **more: nn.Module) -> nn.Sequential:
    """A 3×3 convolution, then one along each axis (1×length, length×1), then whatever else is given."""
    layers: dict[str, nn.Module] = {
        "conv3x3": ConvBN(inputs, channels, 3),
        "relu1": leaky_relu(),
        f"conv1x{length}": ConvBN(channels, channels, (1, length)),
        "relu2": leaky_relu(),
        f"conv{length}x1": ConvBN(channels, channels, (length, 1)),
    }
    return nn.Sequential(OrderedDict(layers | more))


def merging(inputs: int) -> nn.Sequential:
    """Mixes branches back into two channels by a 1×1 convolution."""
    return nn.Sequential(OrderedDict(relu1=leaky_relu(), conv1x1=ConvBN(inputs, 2, 1), relu2=leaky_relu()))


class CRBlock(nn.Module):
    """Two resolutions (3×3, 1×length, length×1 and 1×5, 5×1) side by side, merged by 1×1, around a skip connection."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.wide = wide_branch(2, 7, length)
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


class CRDecoder(nn.Module):
    """Dense, 5×5 convolution, two CRBlocks, some sigmoid: ``[B, M] -> [B, 2, 32, 32]``."""

    def __init__(self, codeword: int, length: int, sigmoid: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(codeword, ENTRIES)
        self.conv5x5 = ConvBN(2, 2, 5)
        self.relu = leaky_relu()
        blocks = [CRBlock(length), CRBlock(length)]
        self.blocks = nn.Sequential(*blocks)
        self.sigmoid = sigmoid
        start_small(self.conv5x5, *(block.merge for block in blocks))

    def forward(self, codeword: Tensor) -> Tensor:
        x: Tensor = self.sigmoid(self.blocks(self.relu(self.conv5x5(to_image(self.fc(codeword))))))
        return x
