"""CRNet: Z. Lu, J. Wang, J. Song, "Multi-resolution CSI feedback with deep learning in massive MIMO system",
ICC 2020 (arXiv 1910.14322)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from edgecsi.models.blocks import (
    CODEWORD,
    ENTRIES,
    LINEAR,
    LOGIT_SLOPE,
    Autoencoder,
    ConvBN,
    ImageDecoder,
    ImageEncoder,
    initialise,
    leaky_relu,
    pass_on,
    start_small,
    to_image,
)


class Encoder(ImageEncoder):
    """A wide (3×3, 1×9, 9×1) and a narrow (3×3) branch, merged by 1×1, then dense:
    ``[B, 2, 32, 32] -> [B, M]``."""

    def __init__(self, codeword: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(
            OrderedDict(
                conv3x3=ConvBN(2, 2, 3),
                relu1=leaky_relu(),
                conv1x9=ConvBN(2, 2, (1, 9)),
                relu2=leaky_relu(),
                conv9x1=ConvBN(2, 2, (9, 1)),
            )
        )
        self.narrow = ConvBN(2, 2, 3)
        self.merge = nn.Sequential(
            OrderedDict(relu1=leaky_relu(), conv1x1=ConvBN(4, 2, 1), relu2=leaky_relu()),
        )
        self.fc = nn.Linear(ENTRIES, codeword)

    def image(self, x: Tensor) -> Tensor:
        merged: Tensor = self.merge(torch.cat([self.wide(x), self.narrow(x)], dim=1))
        return merged

    def pass_image(self) -> None:
        pass_on(self.narrow, 1.0, LINEAR)
        merge: ConvBN = self.merge.conv1x1  # type: ignore[assignment]
        pass_on(merge, 1.0, LINEAR)
        merge.conv.weight.copy_(merge.conv.weight.roll(2, 1))  # the narrow branch is its second half


class CRBlock(nn.Module):
    """Two resolutions (3×3, 1×9, 9×1 and 1×5, 5×1) side by side, merged by 1×1, around a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(
            OrderedDict(
                conv3x3=ConvBN(2, 7, 3),
                relu1=leaky_relu(),
                conv1x9=ConvBN(7, 7, (1, 9)),
                relu2=leaky_relu(),
                conv9x1=ConvBN(7, 7, (9, 1)),
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


class Decoder(ImageDecoder):
    """Dense, 5×5 convolution, two CRBlocks, sigmoid: ``[B, M] -> [B, 2, 32, 32]``."""

    def __init__(self, codeword: int) -> None:
        super().__init__()
        self.fc = nn.Linear(codeword, ENTRIES)
        self.conv5x5 = ConvBN(2, 2, 5)
        self.relu = leaky_relu()
        blocks = [CRBlock(), CRBlock()]
        self.blocks = nn.Sequential(*blocks)
        self.sigmoid = nn.Sigmoid()
        start_small(self.conv5x5, *(block.merge for block in blocks))

    def forward(self, codeword: Tensor) -> Tensor:
        x: Tensor = self.sigmoid(self.blocks(self.relu(self.conv5x5(to_image(self.fc(codeword))))))
        return x

    def pass_image(self, deviation: float) -> None:
        pass_on(self.conv5x5, LOGIT_SLOPE * deviation, LINEAR)
        for block in self.blocks:
            nn.init.zeros_(block.merge.bn.weight)  # type: ignore[union-attr,arg-type]
        # Logits have both signs: the last block takes the shift back. Its activation then bends the negative ones,
        # which no beginning can help.
        nn.init.constant_(self.blocks[-1].merge.bn.bias, -LINEAR)  # type: ignore[union-attr,arg-type]


def crnet(cr: int) -> Autoencoder:
    """CRNet at compression ratio 1/``cr`` (4, 8, 16, 32 or 64), random weights."""
    model = Autoencoder(Encoder(CODEWORD[cr]), Decoder(CODEWORD[cr]))
    initialise(model)
    return model
