"""The test set in the package."""

from __future__ import annotations

import numpy as np
import pytest

from edgecsi.channels.files import load
from edgecsi.channels.shipped import SUBSETS
from edgecsi.channels.shipped import test_set as shipped_set


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_values_are_exact_multiples(subset: str) -> None:
    samples = shipped_set(subset=subset)
    assert samples.shape == (1024, 2, 32, 32)
    assert samples.dtype == np.float32
    steps = samples.astype(np.float64) * 2**13
    np.testing.assert_array_equal(steps, np.round(steps))
    assert samples.min() >= 0
    assert samples.max() <= 1


def test_it_is_reached_by_name_wherever_data_is_taken() -> None:
    np.testing.assert_array_equal(load("test"), shipped_set())
    np.testing.assert_array_equal(load("test-cdl-c"), shipped_set(subset="cdl-c"))


def test_changing_a_copy_changes_nothing_else() -> None:
    shipped_set(2)[:] = 0
    assert shipped_set(2).any()
