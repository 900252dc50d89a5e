"""The detector's channel, transmissions and baselines."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgecsi.errors import DataError
from edgecsi.models import fullycon


def test_the_gram_matrix_of_the_channel_is_toeplitz() -> None:
    index = np.arange(20)
    gram = 0.6 ** np.abs(index[:, None] - index)
    np.testing.assert_allclose(fullycon.channel().T @ fullycon.channel(), gram, atol=1e-12)


def test_the_channel_is_fixed_and_cannot_be_changed() -> None:
    assert fullycon.channel() is fullycon.channel()
    with pytest.raises(ValueError, match="read-only"):
        fullycon.channel()[0, 0] = 1


def test_zero_forcing_has_its_theoretical_error_rate() -> None:
    """Q(1 / (σ·sqrt([(HᵀH)⁻¹]ₖₖ))), the mean over users."""
    snr_db = 9.0
    received, sent = fullycon.transmit(50_000, snr_db, np.random.default_rng(0))
    sigma = 10 ** (-snr_db / 20)
    gain = np.diag(np.linalg.inv(fullycon.channel().T @ fullycon.channel()))
    theory = np.mean([math.erfc(1 / (sigma * math.sqrt(2 * g))) / 2 for g in gain])
    measured = fullycon.bit_error_rate(sent, fullycon.zero_forcing(received))
    assert measured == pytest.approx(theory, rel=0.03)


def test_without_noise_zero_forcing_is_perfect_and_the_matched_filter_is_not() -> None:
    received, sent = fullycon.transmit(1000, 200.0, np.random.default_rng(1))
    assert fullycon.bit_error_rate(sent, fullycon.zero_forcing(received)) == 0
    assert fullycon.bit_error_rate(sent, fullycon.matched_filter(received)) > 0.1


def test_error_rates_are_the_same_every_time_and_fall_with_the_snr() -> None:
    def rates() -> dict[str, list[float]]:
        return fullycon.error_rates(fullycon.zero_forcing, transmissions=5000)

    first = rates()
    assert first == rates()
    assert first["fullycon"] == first["zero_forcing"]
    assert first["zero_forcing"] == sorted(first["zero_forcing"], reverse=True)
    assert first["snr_db"] == [8, 9, 10, 11, 12, 13]


def test_a_spec_of_transmissions() -> None:
    assert fullycon.parse_spec("mimo:500:seed=3") == fullycon.TransmissionSpec(500, 3)
    for text in ("mimo:0", "mimo", "cdl-c:100"):
        with pytest.raises(DataError, match="mimo:COUNT"):
            fullycon.parse_spec(text)
