"""The vocabulary of kernels: its example runs."""

from __future__ import annotations

import doctest

from edgecsi.kernels import emit


def test_the_example_of_the_module_runs() -> None:
    assert doctest.testmod(emit, raise_on_error=True).attempted >= 4
