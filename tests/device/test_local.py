"""``local``: this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecsi import cpu
from edgecsi.bundle import Bundle, Entry, Tensor
from edgecsi.device import Local, open_device
from edgecsi.device.samples import to_calls
from edgecsi.errors import BundleError, DataError, DeviceError, UsageError
from tests import _tiny

X = np.random.default_rng(3).normal(size=(20, 8))


@pytest.fixture
def local() -> Local:
    return open_device("local")


def test_many_samples_are_run(local: Local, bundle: Bundle) -> None:
    np.testing.assert_allclose(local.run(bundle, "full", X), _tiny.full(X), rtol=1e-5)


def test_several_inputs_are_a_sequence(local: Local, bundle: Bundle) -> None:
    total, product = local.run(bundle, "pair", (X[:, :3], X[:, 3:6]))
    np.testing.assert_allclose(total, X[:, :3] + X[:, 3:6], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(product, X[:, :3] * X[:, 3:6], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "x",
    [X[:, :7], X[0], X[:0], X.astype(complex), (X, X), np.array([["a"] * 8])],
    ids=["shape", "one sample", "no samples", "complex", "two inputs", "text"],
)
def test_what_does_not_fit_is_refused(local: Local, bundle: Bundle, x: Any) -> None:
    with pytest.raises(DataError):
        local.run(bundle, "full", x)


def test_a_scalar_is_one_number_a_call_or_one_for_one_call() -> None:
    entry = Entry((Tensor("gain", ()), Tensor("x", (1, 8))), (Tensor("y", (1, 8)),), 0, 0, 0, ())
    for gain, calls in ((np.float32(0.5), 1), (np.array(0.5), 1), (np.array([0.5, 2.0]), 2)):
        given, x = to_calls(entry, (gain, X[:calls]))
        assert (given.shape, given.dtype, x.shape) == ((calls,), np.float32, (calls, 1, 8))
    with pytest.raises(DataError, match="gain has shape"):
        to_calls(entry, (np.zeros((2, 1)), X[:2]))


def test_unequal_numbers_of_samples_are_refused(local: Local, bundle: Bundle) -> None:
    with pytest.raises(DataError, match="different numbers"):
        local.run(bundle, "pair", (X[:, :3], X[:5, :3]))


def test_every_call_is_timed(local: Local, bundle: Bundle) -> None:
    for flush in (0, 1 << 16):
        nanoseconds = local.time(bundle, "full", X, 500, flush_bytes=flush)
        assert nanoseconds.shape == (500,)
        assert np.all((nanoseconds >= 0) & (nanoseconds < 1e10))
    assert local.time(bundle, "pair", (X[:, :3], X[:, 3:6]), 10).shape == (10,)


def test_a_failing_call_is_an_error_in_both(
    local: Local, libraries: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = _tiny.make_bundle(tmp_path / "b", libraries(_tiny.HOST, "-DFAIL"), _tiny.manifest())
    for call in (local.run, lambda *args: local.time(*args, 5)):
        with pytest.raises(DeviceError, match="lacks a required feature"):
            call(bundle, "full", X)


def test_an_unknown_entry(local: Local, bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="decoder, encoder, full, pair"):
        local.run(bundle, "fulll", X)


def test_it_says_what_it_is(local: Local) -> None:
    info = local.info()
    assert (info.spec, info.arch, info.emulated) == ("local", cpu.machine(), False)
    assert info.features == cpu.features()
    assert info.description


@pytest.mark.parametrize(
    "spec", ["", "lokal", "http://pi", "local ", "rpc://pi", "tracker://pi:1", "ssh://-o"]
)
def test_unknown_devices_are_refused(spec: str) -> None:
    with pytest.raises(UsageError):
        open_device(spec)
