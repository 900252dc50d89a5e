"""Pieces that several CSI networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHAPE = (2, 32, 32)
"""One angular-delay matrix: real/imaginary, angle, delay."""

ENTRIES = 2 * 32 * 32
CODEWORD = {4: 512, 8: 256, 16: 128, 32: 64, 64: 32}
"""Compression ratio → length of the codeword."""


class ConvBN(nn.Sequential):
    """Convolution without bias, "same" padding, then batch normalisation (children ``conv`` and ``bn``)."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], groups: int = 1) -> None:
        super().__init__()
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = ((rows - 1) // 2, (columns - 1) // 2)
        self.conv = nn.Conv2d(inputs, outputs, (rows, columns), padding=padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)


def leaky_relu() -> nn.LeakyReLU:
    """The activation of the CsiNet family, slope 0.3."""
    return nn.LeakyReLU(0.3)


class Autoencoder(nn.Module):
    """A CSI network: ``decoder(encoder(x))``.

    ``encoder`` runs on the terminal, ``[B, 2, 32, 32] -> [B, M]``; ``decoder`` at the base station,
    ``[B, M] -> [B, 2, 32, 32]``. Both float32; channel values in [0, 1] with 0.5 meaning zero.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        reconstruction: Tensor = self.decoder(self.encoder(x))
        return reconstruction


def initialise(module: nn.Module) -> None:
    """Glorot-uniform weights and zero biases for every convolution and dense layer, as the papers train."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def start_small(*layers: ConvBN) -> None:
    """Scale the normalised output of these layers to 0.1.

    Behind a sigmoid that is ±0.025, the spread of real channels around 0.5. From the usual scale of 1 the
    first epochs of a training do nothing but shrink it.
    """
    for layer in layers:
        nn.init.constant_(layer.bn.weight, 0.1)


def to_image(x: Tensor) -> Tensor:
    """``[B, 2048] -> [B, 2, 32, 32]``."""
    return torch.reshape(x, (-1, *SHAPE))
