"""Networks for CSI feedback from other papers, written from their descriptions, with random weights.

Factories for ``edgecsi build``, each of a kind that the zoo has not: attention over rows, attention in windows, grouped
convolutions between PReLUs, dense layers written as convolutions, a codebook, bits. ``docs/results.md`` has their times.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgecsi.models.blocks import (
    CODEWORD,
    ENTRIES,
    SHAPE,
    Autoencoder,
    ConvBN,
    initialise,
    leaky_relu,
    to_image,
)
from edgecsi.models.clnet import Encoder as CLEncoder
from edgecsi.models.multi_resolution import CRBlock, CRDecoder

Network = tuple[nn.Module, Tensor]

_EXAMPLE = (1, *SHAPE)
_ROWS, _ROW = 32, 64  # a channel as a sequence
_SIDE = 32
_WINDOW = 8


def _made(module: nn.Module) -> Network:
    """Ready to be used: statistics as a trained network's batch normalisation has them, and an example."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.7, 1.3)
            nn.init.uniform_(part.bias, -0.1, 0.1)
    example = torch.full(_EXAMPLE, 0.5) + 0.03 * torch.randn(_EXAMPLE)
    return module.eval(), example


class TransNet(nn.Module):
    """A transformer over the 32 rows of a channel, on both sides of a dense codeword: Y. Cui, A. Guo, C. Song, "TransNet:
    full attention network for CSI feedback in FDD massive MIMO system", IEEE WCL 2022."""

    def __init__(self, cr: int) -> None:
        super().__init__()
        first = nn.TransformerEncoderLayer(_ROW, 2, 2048, batch_first=True)
        last = nn.TransformerDecoderLayer(_ROW, 2, 2048, batch_first=True)
        self.rows = nn.TransformerEncoder(first, 2, nn.LayerNorm(_ROW), enable_nested_tensor=False)
        self.restored = nn.TransformerDecoder(last, 2, nn.LayerNorm(_ROW))
        self.fc_encoder = nn.Linear(ENTRIES, CODEWORD[cr])
        self.fc_decoder = nn.Linear(CODEWORD[cr], ENTRIES)

    def encode(self, x: Tensor) -> Tensor:
        """``[B, 2, 32, 32] -> [B, M]``."""
        codeword: Tensor = self.fc_encoder(self.rows(x.reshape(-1, _ROWS, _ROW)).flatten(1))
        return codeword

    def decode(self, codeword: Tensor) -> Tensor:
        """``[B, M] -> [B, 2, 32, 32]``."""
        memory = self.fc_decoder(codeword).reshape(-1, _ROWS, _ROW)
        return to_image(self.restored(memory, memory))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def transnet(cr: int = 4) -> Network:
    """TransNet at compression ratio 1/`cr`."""
    torch.manual_seed(0)
    return _made(TransNet(cr))


class WindowAttention(nn.Module):
    """Attention among the rows of each of four strips of eight, four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(_SIDE, 3 * _SIDE), nn.Linear(_SIDE, _SIDE)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        heads, width = 4, _SIDE // 4
        qkv = self.qkv(x).reshape(batch, channels, -1, _WINDOW, 3, heads, width)
        q, k, v = qkv.permute(4, 0, 1, 2, 5, 3, 6)
        seen = torch.softmax(q @ k.transpose(-2, -1) * width**-0.5, -1) @ v
        y: Tensor = self.out(seen.transpose(3, 4).reshape(batch, channels, _SIDE, _SIDE))
        return y


class GlobalAttention(nn.Module):
    """Attention of every row to one summary for each window, four values long."""

    def __init__(self) -> None:
        super().__init__()
        width = _SIDE // _WINDOW
        self.q, self.kv = nn.Linear(_SIDE, _SIDE), nn.Linear(width, 2 * width)
        self.summary, self.norm = nn.Conv2d(2, 2, _WINDOW, _WINDOW), nn.LayerNorm(width)
        self.out = nn.Linear(_SIDE, _SIDE)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        width = _SIDE // _WINDOW
        q = self.q(x).reshape(batch, channels, _SIDE, _WINDOW, width).transpose(2, 3)
        k, v = self.kv(self.norm(self.summary(x))).chunk(2, -1)
        seen = torch.softmax(q @ k[:, :, None].transpose(-2, -1) * _WINDOW**-0.5, -1) @ v[:, :, None]
        y: Tensor = self.out(seen.transpose(2, 3).reshape(batch, channels, _SIDE, _SIDE))
        return y


class SeparableBlock(nn.Module):
    """Attention in windows, then among windows, each with a small network behind it."""

    def __init__(self) -> None:
        super().__init__()

        def feed_forward() -> nn.Module:
            return nn.Sequential(nn.Linear(_SIDE, _SIDE), nn.GELU(), nn.Linear(_SIDE, _SIDE))

        parts = (WindowAttention(), feed_forward(), GlobalAttention(), feed_forward())
        self.parts = nn.ModuleList(nn.Sequential(nn.LayerNorm(_SIDE, eps=1e-6), part) for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = x + part(x)
        return x


def _up_and_down() -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(2, 2, 4, 2, 1), nn.Conv2d(2, 2, 4, 2, 1))


class STEncoder(nn.Module):
    """Convolutions, one separable block, a detour over twice the size: ``[B, 2, 32, 32] -> [B, M]``."""

    def __init__(self, codeword: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(2, 16, 1), nn.Conv2d(16, 2, 5, padding=2))
        self.block = nn.Sequential(SeparableBlock(), nn.LayerNorm(_SIDE, eps=1e-6), _up_and_down())
        self.norm, self.fc = nn.LayerNorm(_SIDE, eps=1e-6), nn.Linear(ENTRIES, codeword)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        codeword: Tensor = self.fc(self.norm(x + self.block(x)).flatten(1))
        return codeword


class STDecoder(nn.Module):
    """The separable block twice, beside a CRBlock: ``[B, M] -> [B, 2, 32, 32]``."""

    def __init__(self, codeword: int) -> None:
        super().__init__()
        self.fc = nn.Linear(codeword, ENTRIES)
        self.refine = nn.Sequential(ConvBN(2, 2, 5), leaky_relu(), CRBlock(9))
        self.embed, self.block = nn.Conv2d(2, 2, 5, padding=2), SeparableBlock()
        self.between = nn.Sequential(nn.LayerNorm(_SIDE, eps=1e-6), _up_and_down())
        self.norm = nn.LayerNorm(_SIDE, eps=1e-6)

    def forward(self, codeword: Tensor) -> Tensor:
        image = to_image(self.fc(codeword))
        refined = self.refine(image)
        x = self.between(self.block(self.embed(image) + refined))
        return torch.sigmoid(self.norm(self.block(x + refined)))


def stnet(cr: int = 4) -> Network:
    """STNet at compression ratio 1/`cr`: S. Mourya, S. D. Amuru, "A spatially separable attention mechanism for massive
    MIMO CSI feedback", IEEE WCL 2023."""
    torch.manual_seed(0)
    return _made(Autoencoder(STEncoder(CODEWORD[cr]), STDecoder(CODEWORD[cr])))


class _Around(nn.Module):
    """Some layers around which the input is added, then a PReLU of two channels."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.prelu = nn.Sequential(*layers), nn.PReLU(2, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.prelu(x + self.layers(x))
        return y


class _Flat(nn.Module):
    """Convolutions, then one dense layer."""

    def __init__(self, image: nn.Module, codeword: int) -> None:
        super().__init__()
        self.image, self.fc = image, nn.Linear(ENTRIES, codeword)

    def forward(self, x: Tensor) -> Tensor:
        codeword: Tensor = self.fc(self.image(x).flatten(1))
        return codeword


class _Image(nn.Module):
    """One dense layer, then convolutions."""

    def __init__(self, codeword: int, image: nn.Module) -> None:
        super().__init__()
        self.fc, self.image = nn.Linear(codeword, ENTRIES), image

    def forward(self, codeword: Tensor) -> Tensor:
        x: Tensor = self.image(to_image(self.fc(codeword)))
        return x


def acrnet(cr: int = 4, expansion: int = 1) -> Network:
    """ACRNet at compression ratio 1/`cr`, `expansion` times as wide: Z. Lu et al., "Binarized aggregated network with
    quantization: flexible deep learning deployment for CSI feedback in massive MIMO systems", IEEE TWC 2022."""
    torch.manual_seed(0)
    wide = 8 * expansion

    def narrow() -> nn.Module:
        return _Around(ConvBN(2, 2, (1, 9)), nn.PReLU(2, 0.3), ConvBN(2, 2, (9, 1)))

    def aggregated() -> nn.Module:
        return _Around(
            ConvBN(2, wide, (1, 9)), nn.PReLU(wide, 0.3), ConvBN(wide, wide, 7, wide // 2), nn.PReLU(wide, 0.3),
            ConvBN(wide, 2, (9, 1)),
        )  # fmt: skip

    first = nn.Sequential(ConvBN(2, 2, 5), nn.PReLU(2, 0.3), narrow(), narrow())
    last = nn.Sequential(ConvBN(2, 2, 5), nn.PReLU(2, 0.3), aggregated(), aggregated(), nn.Sigmoid())
    module = Autoencoder(_Flat(first, CODEWORD[cr]), _Image(CODEWORD[cr], last))
    initialise(module)
    return _made(module)


class _AsConvolution(nn.Module):
    """A dense layer as some write it: a convolution over sequences of length one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x[..., None]).squeeze(-1)
        return y


def clnet(cr: int = 4) -> Network:
    """CLNet at compression ratio 1/`cr` with its dense layers as published, a ``Conv1d`` and a ``ConvTranspose1d`` of
    length 1: S. Ji, M. Li, "CLNet: complex input lightweight neural network designed for massive MIMO CSI feedback",
    IEEE WCL 2021."""
    torch.manual_seed(0)
    codeword = CODEWORD[cr]
    encoder, decoder = CLEncoder(codeword), CRDecoder(codeword, 3, nn.Hardsigmoid())
    initialise(encoder)
    initialise(decoder)
    encoder.fc = _AsConvolution(nn.Conv1d(ENTRIES, codeword, 1))  # type: ignore[assignment]
    decoder.fc = _AsConvolution(nn.ConvTranspose1d(codeword, ENTRIES, 1))  # type: ignore[assignment]
    return _made(Autoencoder(encoder, decoder))


class VectorQuantised(nn.Module):
    """A codeword of `parts` vectors, each replaced by the nearest of a codebook: J. Shin, Y. Kang, Y.-S. Jeon, "Vector
    quantization for deep-learning-based CSI feedback in massive MIMO systems", IEEE WCL 2024 (after A. van den Oord et
    al., arXiv 1711.00937)."""

    def __init__(self, parts: int, length: int, entries: int) -> None:
        super().__init__()
        self.parts, self.length = parts, length
        images = [
            nn.Sequential(OrderedDict(a=ConvBN(2, 16, 3), b=leaky_relu(), c=ConvBN(16, 2, 3), d=leaky_relu()))
            for _ in range(2)
        ]
        self.analyse, self.synthesise = _Flat(images[0], parts * length), _Image(parts * length, images[1])
        self.codebook = nn.Parameter(torch.randn(entries, length))

    def encode(self, x: Tensor) -> Tensor:
        """Numbers of the nearest vectors: ``[B, 2, 32, 32]`` to integers ``[B, parts]``."""
        vectors = self.analyse(x).reshape(-1, self.parts, 1, self.length)
        distances: Tensor = (vectors - self.codebook).square().sum(-1)
        return distances.argmin(-1)

    def decode(self, numbers: Tensor) -> Tensor:
        """``[B, parts]`` to ``[B, 2, 32, 32]``."""
        image: Tensor = torch.sigmoid(self.synthesise(self.codebook[numbers].flatten(1)))
        return image

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def vector_quantised() -> Network:
    """32 vectors of 16 values from a codebook of 256: 256 bits a channel."""
    torch.manual_seed(0)
    module = VectorQuantised(32, 16, 256)
    initialise(module)
    return _made(module)


class BitCodec(nn.Module):
    """A codeword of bits: every value in 0 to 1 rounded to 2^bits levels, as CSI feedback challenges ask for it (H. Xiao
    et al., "AI enlightens wireless communication: analyses, solutions and opportunities on CSI feedback", arXiv
    2106.06759). CRNet's decoder behind it."""

    def __init__(self, values: int, bits: int) -> None:
        super().__init__()
        first = nn.Sequential(ConvBN(2, 16, 3), leaky_relu(), ConvBN(16, 2, 3), leaky_relu())
        self.analyse, self.synthesise = _Flat(first, values), CRDecoder(values, 9, nn.Sigmoid())
        self.bits = bits
        self.register_buffer("powers", 2 ** torch.arange(bits - 1, -1, -1))

    powers: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """``[B, 2, 32, 32]`` to zeros and ones, float32 ``[B, values * bits]``."""
        level = torch.round(torch.sigmoid(self.analyse(x)) * 2**self.bits - 0.5).to(torch.int64)
        return ((level[..., None] // self.powers) % 2).flatten(1).float()

    def decode(self, codeword: Tensor) -> Tensor:
        """``[B, values * bits]`` to ``[B, 2, 32, 32]``."""
        level = (codeword.reshape(len(codeword), -1, self.bits) * self.powers).sum(-1)
        image: Tensor = self.synthesise((level + 0.5) / 2**self.bits)
        return image

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def bit_codec() -> Network:
    """128 values of 4 bits."""
    torch.manual_seed(0)
    module = BitCodec(128, 4)
    initialise(module)
    return _made(module)


Factory = Callable[[], Network]
NETWORKS: tuple[Factory, ...] = (transnet, stnet, acrnet, clnet, vector_quantised, bit_codec)
