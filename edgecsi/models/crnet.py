"""CRNet: Z. Lu, J. Wang, J. Song, "Multi-resolution CSI feedback with deep learning in massive MIMO system",
ICC 2020 (arXiv 1910.14322)."""

from __future__ import annotations

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
    pass_on,
)
from edgecsi.models.multi_resolution import CRDecoder, merging, wide_branch


class Encoder(ImageEncoder):
    """A wide (3×3, 1×9, 9×1) and a narrow (3×3) branch, merged by 1×1, then dense:
    ``[B, 2, 32, 32] -> [B, M]``."""

    def __init__(self, codeword: int) -> None:
        super().__init__()
        self.wide = wide_branch(2, 2, 9)
        self.narrow = ConvBN(2, 2, 3)
        self.merge = merging(4)
        self.fc = nn.Linear(ENTRIES, codeword)

    def image(self, x: Tensor) -> Tensor:
        merged: Tensor = self.merge(torch.cat([self.wide(x), self.narrow(x)], dim=1))
        return merged

    def pass_image(self) -> None:
        pass_on(self.narrow, 1.0, LINEAR)
        merge: ConvBN = self.merge.conv1x1  # type: ignore[assignment]
        pass_on(merge, 1.0, LINEAR)
        merge.conv.weight.copy_(merge.conv.weight.roll(2, 1))  # the narrow branch is its second half


class Decoder(CRDecoder, ImageDecoder):
    """CRBlocks with convolutions of length 9, a sigmoid."""

    def __init__(self, codeword: int) -> None:
        super().__init__(codeword, 9, nn.Sigmoid())

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
