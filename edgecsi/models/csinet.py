"""CsiNet: C.-K. Wen, W.-T. Shih, S. Jin, "Deep learning for massive MIMO CSI feedback", IEEE WCL 2018
(arXiv 1712.08919)."""

from __future__ import annotations

from collections import OrderedDict

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
    """One 3×3 convolution and one dense layer, ``[B, 2, 32, 32] -> [B, M]``."""

    def __init__(self, codeword: int) -> None:
        super().__init__()
        self.features = nn.Sequential(OrderedDict(conv3x3=ConvBN(2, 2, 3), relu=leaky_relu()))
        self.fc = nn.Linear(ENTRIES, codeword)

    def image(self, x: Tensor) -> Tensor:
        features: Tensor = self.features(x)
        return features

    def pass_image(self) -> None:
        pass_on(self.features.conv3x3, 1.0, LINEAR)  # type: ignore[arg-type]


class RefineNet(nn.Module):
    """Three 3×3 convolutions 2→8→16→2 around a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.path = nn.Sequential(
            OrderedDict(
                expand1=ConvBN(2, 8, 3),
                relu1=leaky_relu(),
                expand2=ConvBN(8, 16, 3),
                relu2=leaky_relu(),
                project=ConvBN(16, 2, 3),
            )
        )
        self.relu = leaky_relu()

    def forward(self, x: Tensor) -> Tensor:
        refined: Tensor = self.relu(self.path(x) + x)
        return refined


class Decoder(ImageDecoder):
    """One dense layer, two RefineNets, one 3×3 convolution and a sigmoid, ``[B, M] -> [B, 2, 32, 32]``."""

    def __init__(self, codeword: int) -> None:
        super().__init__()
        self.fc = nn.Linear(codeword, ENTRIES)
        self.refine = nn.Sequential(RefineNet(), RefineNet())
        self.conv3x3 = ConvBN(2, 2, 3)
        self.sigmoid = nn.Sigmoid()
        start_small(self.conv3x3)

    def forward(self, codeword: Tensor) -> Tensor:
        x: Tensor = self.sigmoid(self.conv3x3(self.refine(to_image(self.fc(codeword)))))
        return x

    def pass_image(self, deviation: float) -> None:
        for block in self.refine:
            nn.init.zeros_(block.path.project.bn.weight)  # type: ignore[union-attr,arg-type]
        pass_on(self.conv3x3, LOGIT_SLOPE * deviation, 0.0)


def csinet(cr: int) -> Autoencoder:
    """CsiNet at compression ratio 1/``cr`` (4, 8, 16, 32 or 64), random weights."""
    model = Autoencoder(Encoder(CODEWORD[cr]), Decoder(CODEWORD[cr]))
    initialise(model)
    return model
