"""ConvSquCsiNet: ConvCsiNet with SqueezeNet's Fire modules in place of its 3×3 convolutions.

J. Guo, J. Wang, C.-K. Wen, S. Jin, G. Y. Li, "Compression and acceleration of neural networks for
communications", IEEE Wireless Communications 2020 (arXiv 1907.13269); the Fire module is from
F. Iandola et al., arXiv 1602.07360.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecsi.models.blocks import Autoencoder, ConvBN, leaky_relu
from edgecsi.models.convcsinet import build


class Fire(nn.Module):
    """1×1 squeeze to a quarter, then 1×1 and 3×3 expansions side by side; keeps height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        squeezed = max(outputs // 4, 4)
        self.squeeze = ConvBN(inputs, squeezed, 1)
        self.relu = leaky_relu()
        self.expand1x1 = ConvBN(squeezed, outputs // 2, 1)
        self.expand3x3 = ConvBN(squeezed, outputs // 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.relu(self.squeeze(x))
        return torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], dim=1)


def convsqucsinet(cr: int) -> Autoencoder:
    """ConvSquCsiNet at compression ratio 1/``cr`` (4, 8, 16, 32 or 64), random weights."""
    return build(cr, Fire)
