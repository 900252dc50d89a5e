"""Figures of merit, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgecsi.channels.metrics import nmse_db, rho, sgcs
from edgecsi.channels.shipped import test_set as shipped_set
from edgecsi.errors import DataError


@pytest.fixture
def samples() -> np.ndarray:
    return shipped_set(16)


def test_no_reconstruction_is_zero_decibels(samples: np.ndarray) -> None:
    assert nmse_db(samples, np.full_like(samples, 0.5)) == pytest.approx(0, abs=1e-9)


def test_a_tenth_of_the_amplitude_missing_is_minus_twenty(samples: np.ndarray) -> None:
    assert nmse_db(samples, 0.5 + 0.9 * (samples - 0.5)) == pytest.approx(-20, abs=1e-4)


def test_it_is_a_mean_of_ratios(samples: np.ndarray) -> None:
    """A weak sample counts as much as a strong one."""
    pair = samples[:2].copy()
    pair[1] = 0.5 + (pair[1] - 0.5) / 100
    estimate = pair.copy()
    estimate[1] = 0.5
    assert nmse_db(pair, estimate) == pytest.approx(10 * math.log10(0.5), abs=1e-6)


def test_a_perfect_reconstruction(samples: np.ndarray) -> None:
    assert nmse_db(samples, samples) == -math.inf
    assert rho(samples, samples) == pytest.approx(1)
    assert sgcs(samples, samples) == pytest.approx(1)


def test_similarity_ignores_scale_and_squares_to_sgcs(samples: np.ndarray) -> None:
    assert rho(samples, 0.5 + 0.3 * (samples - 0.5)) == pytest.approx(1, abs=1e-6)
    noisy = samples + np.random.default_rng(0).normal(0, 0.01, samples.shape).astype(np.float32)
    assert rho(samples, noisy) ** 2 <= sgcs(samples, noisy) < rho(samples, noisy) < 1


def test_similarity_against_a_direct_computation(samples: np.ndarray) -> None:
    noisy = samples + np.random.default_rng(1).normal(0, 0.02, samples.shape)

    def subcarrier(x: np.ndarray, k: int) -> np.ndarray:
        taps = (x[0] - 0.5) + 1j * (x[1] - 0.5)
        return taps @ np.exp(-2j * np.pi * k * np.arange(32) / 257)

    values = []
    for x, y in zip(samples, noisy, strict=True):
        for k in range(125):
            h, g = subcarrier(x, k), subcarrier(y, k)
            values.append(abs(np.vdot(g, h)) / np.linalg.norm(g) / np.linalg.norm(h))
    assert rho(samples, noisy) == pytest.approx(np.mean(values), rel=1e-9)


def test_what_cannot_be_judged_is_refused(samples: np.ndarray) -> None:
    with pytest.raises(DataError, match="shapes differ"):
        nmse_db(samples, samples[:3])
    empty = samples.copy()
    empty[5] = 0.5
    with pytest.raises(DataError, match="sample 5 has no power"):
        nmse_db(empty, samples)


def test_other_shapes_and_zero_centred_data_have_an_nmse() -> None:
    x = np.random.default_rng(0).standard_normal((8, 60))
    assert nmse_db(x, 0 * x) == pytest.approx(0)
    assert nmse_db(x, 0.9 * x) == pytest.approx(-20)
