"""FullyCon: a multilayer perceptron that detects the bits of a MIMO transmission over a fixed channel.

N. Samuel, T. Diskin, A. Wiesel, "Learning to detect", IEEE TSP 2019 (arXiv 1805.07631); compressed in
J. Guo et al., arXiv 1907.13269. K = 20 BPSK users, N = 30 antennas, y = Hx + w. The channel is 0.6-Toeplitz:
HᵀH has the entries 0.6^|i-j|, so every user arrives with unit energy and the SNR of a user is 1/σ² with
w ~ N(0, σ²I).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecsi.errors import DataError

USERS = 20
ANTENNAS = 30
CORRELATION = 0.6
HIDDEN = 200
TRAINING_SNR_DB = (7.0, 14.0)
TEST_SNR_DB = (8.0, 9.0, 10.0, 11.0, 12.0, 13.0)


class FullyCon(nn.Module):
    """30-200-200-200-200-20 with ReLU between: received vector ``[B, 30]`` to one logit a bit ``[B, 20]``.

    The sign of a logit is the detected BPSK symbol.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = [ANTENNAS, HIDDEN, HIDDEN, HIDDEN, HIDDEN, USERS]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (inputs, outputs) in enumerate(pairwise(widths), 1):
            layers[f"fc{i}"] = nn.Linear(inputs, outputs)
            if i < len(widths) - 1:
                layers[f"relu{i}"] = nn.ReLU()
        self.layers = nn.Sequential(layers)

    def forward(self, y: Tensor) -> Tensor:
        logits: Tensor = self.layers(y)
        return logits


def fullycon() -> FullyCon:
    """FullyCon with random weights."""
    return FullyCon()


@cache
def channel() -> NDArray[Any]:
    """The fixed channel H, float64 ``[30, 20]``: orthonormal columns of a seeded Gaussian matrix times the
    Cholesky factor of the Toeplitz Gram matrix."""
    index = np.arange(USERS)
    gram = CORRELATION ** np.abs(index[:, None] - index[None, :])
    gaussian = np.random.default_rng(2019).standard_normal((ANTENNAS, USERS))
    q, r = np.linalg.qr(gaussian)
    h: NDArray[Any] = (q * np.sign(np.diag(r))) @ np.linalg.cholesky(gram).T
    h.flags.writeable = False
    return h


def transmit(
    count: int, snr_db: float | tuple[float, float], rng: np.random.Generator
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Random transmissions.

    Args:
        count: number of vectors B.
        snr_db: SNR of a user in dB, or a range to draw every vector's SNR from uniformly.
        rng: source of the bits, the SNRs and the noise.

    Returns:
        received ``[B, 30]`` and sent symbols ±1 ``[B, 20]``, both float32.
    """
    low, high = snr_db if isinstance(snr_db, tuple) else (snr_db, snr_db)
    sent = rng.integers(0, 2, (count, USERS), dtype=np.int8).astype(np.float32) * 2 - 1
    sigma = (10.0 ** (-rng.uniform(low, high, (count, 1)) / 20)).astype(np.float32)
    noise = rng.standard_normal((count, ANTENNAS), dtype=np.float32)
    received = sent @ channel().T.astype(np.float32) + sigma * noise
    return received, sent


@dataclass(frozen=True)
class TransmissionSpec:
    """What a detector is trained on: fresh transmissions every epoch. Written ``mimo:COUNT[:seed=N]``."""

    per_epoch: int
    seed: int = 0


def parse_spec(text: str) -> TransmissionSpec:
    """Read ``mimo:COUNT[:seed=N]``.

    Raises:
        DataError: it is something else.
    """
    match = re.fullmatch(r"mimo:(\d{1,9})(?::seed=(\d{1,9}))?", text)
    if match is None or int(match[1]) == 0:
        raise DataError(
            f"{text!r} is nothing to train a detector on",
            "FullyCon learns from random transmissions over its fixed channel",
            "write mimo:COUNT[:seed=N], for instance mimo:500000; COUNT is per epoch",
        )
    return TransmissionSpec(int(match[1]), int(match[2] or 0))


def error_rates(
    detect: Callable[[NDArray[Any]], NDArray[Any]], *, transmissions: int = 500_000, seed: int = 1907
) -> dict[str, list[float]]:
    """Bit error rates over 8-13 dB of a detector and of the two classical ones, on the same transmissions.

    Args:
        detect: received float32 ``[B, 30]`` to soft bits ``[B, 20]``.
        transmissions: vectors for every SNR, 20 bits each.
        seed: seed of bits and noise.

    Returns:
        lists of equal length: ``snr_db``, ``fullycon``, ``zero_forcing``, ``matched_filter``.
    """
    detectors = {"fullycon": detect, "zero_forcing": zero_forcing, "matched_filter": matched_filter}
    rates: dict[str, list[float]] = {"snr_db": list(TEST_SNR_DB), **{name: [] for name in detectors}}
    for index, snr_db in enumerate(TEST_SNR_DB):
        rng = np.random.default_rng((seed, index))
        wrong = dict.fromkeys(detectors, 0.0)
        done = 0
        while done < transmissions:
            received, sent = transmit(min(10_000, transmissions - done), snr_db, rng)
            for name, detector in detectors.items():
                wrong[name] += bit_error_rate(sent, detector(received)) * len(sent)
            done += len(sent)
        for name in detectors:
            rates[name].append(wrong[name] / transmissions)
    return rates


def bit_error_rate(sent: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Share of bits whose sign differs; both ``[B, 20]``, the estimate may be soft."""
    return float(np.mean((estimate > 0) != (sent > 0)))


def zero_forcing(received: NDArray[Any]) -> NDArray[Any]:
    """Soft symbols of the decorrelator (HᵀH)⁻¹Hᵀy, ``[B, 30] -> [B, 20]``."""
    symbols: NDArray[Any] = received @ np.linalg.pinv(channel()).T
    return symbols


def matched_filter(received: NDArray[Any]) -> NDArray[Any]:
    """Soft symbols of the matched filter Hᵀy, ``[B, 30] -> [B, 20]``."""
    symbols: NDArray[Any] = received @ channel()
    return symbols
