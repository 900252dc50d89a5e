"""The figures of accuracy, under the names they have everywhere."""

import math

import numpy as np

from edgecsi import verdict
from edgecsi.verdict import Accuracy


def test_a_compressed_network_has_four_figures_and_a_large_loss_is_said_in_words() -> None:
    assert Accuracy.of("int8-static", -20.26, -11.99, -11.98).named() == {
        "fp32 network": "NMSE -20.26 dB",
        "compressed network in PyTorch": "NMSE -11.99 dB",
        "library": "NMSE -11.98 dB",
        "loss": "8.28 dB: its errors have 6.7 times the power of the fp32 network's",
    }


def test_an_fp32_network_is_not_called_compressed() -> None:
    assert Accuracy.of(None, None, -20.0, -20.0).named() == {
        "fp32 network": "NMSE -20.00 dB",
        "library": "NMSE -20.00 dB",
        "loss": "0.00 dB",
    }


def test_what_is_not_known_is_left_out() -> None:
    assert Accuracy.of("mine", None, None, -8.0).named() == {"library": "NMSE -8.00 dB"}
    assert Accuracy.of(None, None, None, None).named() == {}
    assert Accuracy(-math.inf, None, -math.inf).loss == 0


def test_a_gain_too_small_to_see_has_no_sign() -> None:
    assert Accuracy(-20.0, None, -20.001).named()["loss"] == "0.00 dB"


def test_ties_are_taken_from_the_answer_and_everything_else_from_what_is_right() -> None:
    right = np.array([1, 2, np.nan, np.inf, 0, 3], np.float32)
    y = np.array([1.00001, 5, np.nan, np.inf, np.nan, 3], np.float32)
    settled = verdict.with_ties_of(y, right, 1e-4)
    assert np.array_equal(settled, np.array([1, 5, np.nan, np.inf, np.nan, 3], np.float32), equal_nan=True)
    whole = verdict.with_ties_of(np.array([3, 7], np.int32), np.array([3, 6], np.int32), 1e-5)
    assert whole.dtype == np.int32
    assert whole.tolist() == [3, 7]


def test_reconstruction_down_to_rounding_is_no_loss() -> None:
    assert verdict.decibels_apart(-140.3, -140.9) == 0
    assert verdict.decibels_apart(-np.inf, -138.0) == 0
    assert verdict.decibels_apart(-np.inf, -np.inf) == 0
    assert verdict.decibels_apart(None, -20.0) == 0
    assert verdict.decibels_apart(-20.0, -20.5) == 0.5
    assert not verdict.decibels_apart(float("nan"), -20.0) <= verdict.NMSE_DB
