"""Pieces that several CSI networks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SHAPE = (2, 32, 32)
"""One angular-delay matrix: real/imaginary, angle, delay."""

ENTRIES = 2 * 32 * 32
CODEWORD = {4: 512, 8: 256, 16: 128, 32: 64, 64: 32}
"""Compression ratio → length of the codeword."""

LINEAR = 3.0
"""Where a normalised image lies so high that few of its values meet the bend of an activation."""
LOGIT_SLOPE = 4.5
"""sigmoid(4.5·(x - 0.5)) is about x: 4 fits small signals best, large ones need more."""
_STATISTICS_OF = 8000
_RIDGE = 1e-6


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


class ImageEncoder(nn.Module, ABC):
    """An encoder that is convolutions, then one dense layer ``fc``: ``[B, 2, 32, 32] -> [B, M]``."""

    fc: nn.Linear

    @abstractmethod
    def image(self, x: Tensor) -> Tensor:
        """What the dense layer is given, ``[B, 2, 32, 32]``."""

    @abstractmethod
    def pass_image(self) -> None:
        """Set the convolutions so that :meth:`image` is its input, normalised and shifted to where the
        activations are linear."""

    def forward(self, x: Tensor) -> Tensor:
        codeword: Tensor = self.fc(self.image(x).flatten(1))
        return codeword


class ImageDecoder(nn.Module, ABC):
    """A decoder that is one dense layer ``fc``, then convolutions and a sigmoid."""

    fc: nn.Linear

    @abstractmethod
    def pass_image(self, deviation: float) -> None:
        """Set the convolutions so that an image 1 + 2·(x - 0.5) of the dense layer comes out as about x.

        Args:
            deviation: standard deviation of x, which batch normalisation divides by.
        """


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

    @torch.no_grad()
    def start_linear(self, samples: Tensor) -> bool:
        """Begin as the best linear network: codewords are principal components of the samples.

        Dense layers take most epochs to learn what can be computed. Convolutions begin by passing images on,
        residual paths by adding nothing; batch normalisation holds the statistics of the samples.

        Args:
            samples: float32 ``[N, 2, 32, 32]``.

        Returns:
            False if this network has no such beginning; nothing has changed then.
        """
        encoder, decoder = self.encoder, self.decoder
        if not (isinstance(encoder, ImageEncoder) and isinstance(decoder, ImageDecoder)):
            return False
        encoder.pass_image()
        decoder.pass_image(float((samples - 0.5).std()))
        some = samples[:_STATISTICS_OF]
        with _measuring(encoder):
            encoder.image(some)
        features = encoder.image(samples).flatten(1)
        mean = features.mean(0)
        features -= mean
        if len(features) < ENTRIES:
            axes = torch.linalg.svd(features, full_matrices=False)[2]
        else:
            axes = torch.linalg.eigh(features.T @ features)[1].T.flip(0)
        axes = axes[: encoder.fc.out_features]
        encoder.fc.weight[: len(axes)] = axes
        encoder.fc.bias.copy_(-encoder.fc.weight @ mean)
        codewords = features @ encoder.fc.weight.T
        signal = (samples - 0.5).flatten(1)
        ridge = _RIDGE * len(samples) * torch.eye(codewords.shape[1])
        answer = torch.linalg.solve(codewords.T @ codewords + ridge, codewords.T @ signal)
        decoder.fc.weight.copy_(2 * answer.T)
        decoder.fc.bias.copy_(1 + 2 * signal.mean(0))
        with _measuring(decoder):
            decoder(encoder(some))
        return True


@contextmanager
def _measuring(module: nn.Module) -> Iterator[None]:
    """What runs through meanwhile becomes the running statistics of batch normalisation."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, here of one
    module.train()
    try:
        yield
    finally:
        module.eval()
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum


def pass_on(layer: ConvBN, scale: float, shift: float) -> None:
    """Let a convolution answer its input's first channels, normalised, times ``scale``, plus ``shift``."""
    nn.init.dirac_(layer.conv.weight)
    nn.init.constant_(layer.bn.weight, scale)
    nn.init.constant_(layer.bn.bias, shift)


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
