"""How good a reconstruction is.

Samples are arrays ``[N, …]``. Channels are ``[N, 2, 32, 32]`` (real/imaginary, angle, delay) in [0, 1] with 0.5 meaning
zero; rho and SGCS are for them alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.errors import DataError

SUBCARRIERS = 125
_FFT_SIZE = 257
_SLACK = 1e-3  # beyond [0, 1]


def centre(samples: NDArray[Any]) -> float:
    """What means zero: 0.5 where all entries lie in [0, 1], as the CSI papers scale them, else 0."""
    inside = samples.size > 0 and float(samples.min()) >= -_SLACK and float(samples.max()) <= 1 + _SLACK
    return 0.5 if inside else 0.0


def nmse(reference: NDArray[Any], estimate: NDArray[Any]) -> NDArray[Any]:
    """Normalised squared error of every sample, ‖x - x̂‖² / ‖x - c‖², float64 ``[N]``, linear; c is :func:`centre`.

    Raises:
        DataError: the shapes differ, or a reference sample has no power.
    """
    x, y = _pair(reference, estimate)
    axes = tuple(range(1, x.ndim))
    middle = centre(x)
    power = np.square(x - middle).sum(axes)
    if not power.all():
        raise DataError(
            f"sample {int(np.argmin(power))} has no power",
            f"all its entries are {middle:g}, so its normalised error is not defined",
            "drop empty samples",
        )
    ratio: NDArray[Any] = np.square(x - y).sum(axes) / power
    return ratio


def nmse_db(reference: NDArray[Any], estimate: NDArray[Any]) -> float:
    """NMSE in dB: 10·log10 of the mean over samples of :func:`nmse`.

    A mean of ratios, not a ratio of means, as in the CsiNet and CRNet papers; minus infinity if all is exact.
    """
    mean = float(nmse(reference, estimate).mean())
    return float(10 * np.log10(mean)) if mean > 0 else float("-inf")


def rho(reference: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Cosine similarity |ĥᴴh| / (‖ĥ‖‖h‖) over the antennas, mean over samples and 125 subcarriers, 0 to 1.

    The angular-delay samples go back to frequency by zero-padding the delay from 32 to 257, an FFT, and
    keeping the first 125 (Wen, Shih, Jin, arXiv 1712.08919, section IV).

    Args:
        reference: true samples.
        estimate: reconstructed samples.
    """
    return float(_cosine(reference, estimate).mean())


def sgcs(reference: NDArray[Any], estimate: NDArray[Any]) -> float:
    """Squared generalised cosine similarity, the squared form of :func:`rho` (3GPP TR 38.843), 0 to 1."""
    return float(np.square(_cosine(reference, estimate)).mean())


def _cosine(reference: NDArray[Any], estimate: NDArray[Any]) -> NDArray[Any]:
    """|ĥᴴh| / (‖ĥ‖‖h‖) per sample and subcarrier, float64 ``[N, 125]``; 0 where a vector is zero."""
    h, g = map(_subcarriers, _pair(reference, estimate))
    product = np.abs((g.conj() * h).sum(axis=1))
    norms = np.linalg.norm(h, axis=1) * np.linalg.norm(g, axis=1)
    cosine: NDArray[Any] = product / np.where(norms > 0, norms, 1.0)
    return cosine


def _subcarriers(samples: NDArray[Any]) -> NDArray[Any]:
    """Delay back to frequency, complex128 ``[N, 32, 125]``."""
    channel = (samples[:, 0] - 0.5) + 1j * (samples[:, 1] - 0.5)
    return np.fft.fft(channel, n=_FFT_SIZE, axis=-1)[..., :SUBCARRIERS]


def _pair(reference: NDArray[Any], estimate: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    if reference.shape != estimate.shape:
        raise DataError(
            f"shapes differ: {list(reference.shape)} and {list(estimate.shape)}",
            "a reconstruction has the shape of its reference",
            "compare results of the same samples",
        )
    return reference.astype(np.float64), estimate.astype(np.float64)
