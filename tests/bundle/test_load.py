"""Running a library from Python."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import edgecsi
from edgecsi import cpu
from edgecsi.bundle import Bundle, call, fast_call, golden_npz, read_golden, shared_library, write_bundle
from edgecsi.device import toolchain
from edgecsi.errors import BundleError, DataError, DeviceError, ToolchainError, UsageError
from tests import _tiny

X = np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32)


@pytest.fixture(params=["compiled", "short", "long"])
def loaded(request: pytest.FixtureRequest, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A library, called by the compiled module, through ctypes, and as a Python that does not tell where arrays are."""
    if request.param == "compiled":
        assert toolchain.fast_call() == fast_call.place()
        assert fast_call.module() is not None
    else:
        monkeypatch.setattr(fast_call, "module", lambda: None)
    if request.param == "long":
        monkeypatch.setattr(call, "_addresses_are_readable", lambda: False)
    return edgecsi.load(bundle.path)


def test_the_answer_is_right(loaded: Bundle) -> None:
    np.testing.assert_allclose(loaded.run(X), _tiny.full(X), rtol=1e-6)
    codeword = loaded.run(X, entry="encoder")
    np.testing.assert_allclose(loaded.run(codeword, entry="decoder"), _tiny.full(X), rtol=1e-6)


def test_results_do_not_share_memory(loaded: Bundle) -> None:
    first = loaded.run(X)
    kept = first.copy()
    loaded.run(-X)
    np.testing.assert_array_equal(first, kept)


def test_several_inputs_and_outputs(loaded: Bundle) -> None:
    total, product = loaded.run(X[:, :3], X[:, 3:6], entry="pair")
    np.testing.assert_allclose(total, X[:, :3] + X[:, 3:6])
    np.testing.assert_allclose(product, X[:, :3] * X[:, 3:6])


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.float64),
        lambda x: x.astype(">f4"),
        lambda x: x.tolist(),
        lambda x: np.asfortranarray(np.repeat(x, 2, axis=1))[:, ::2],
        lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
        lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
        lambda x: np.ma.masked_array(x),
        lambda x: np.stack([x + 1, x])[1],
    ],
    ids=["float64", "big-endian", "list", "strided", "unaligned", "read-only", "subclass", "part"],
)
@pytest.mark.parametrize("entry", ["full", "pair"])
def test_other_arrays_are_converted(loaded: Bundle, convert: Any, entry: str) -> None:
    inputs = [X] if entry == "full" else [X[:, :3].copy(), X[:, 3:6].copy()]
    wanted = loaded.run(*inputs, entry=entry)
    np.testing.assert_array_equal(loaded.run(*map(convert, inputs), entry=entry), wanted)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (X[0], r"shape \(8,\)"),
        (np.zeros((2, 8), np.float32), r"shape \(2, 8\)"),
        (X.astype(complex), "complex128"),
        (np.array([["a"] * 8]), "<U1"),
        ([[1, 2], [3]], "no array"),
        (None, "object"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(loaded: Bundle, x: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        loaded.run(x)
    assert "csi" in str(caught.value)


def test_the_number_of_inputs_is_checked(loaded: Bundle) -> None:
    with pytest.raises(DataError, match="takes 2 input"):
        loaded.run(X, entry="pair")
    with pytest.raises(DataError, match="takes 1 input"):
        loaded.run()


def test_an_unknown_entry_lists_the_known_ones(loaded: Bundle) -> None:
    with pytest.raises(BundleError, match="decoder, encoder, full, pair"):
        loaded.run(X, entry="encode")


def test_out_is_written_and_returned(loaded: Bundle) -> None:
    out = np.zeros((1, 8), np.float32)
    assert loaded.run(X, out=out) is out
    np.testing.assert_array_equal(out, loaded.run(X))
    results = np.zeros((3, 1, 8), np.float32)
    for part in results:
        loaded.run(X, out=part)
    np.testing.assert_array_equal(results, np.stack([out] * 3))


def _read_only():
    out = np.zeros((1, 8), np.float32)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((8,), np.float32),
        np.zeros((1, 8)),
        np.zeros((1, 8), ">f4"),
        np.zeros((1, 16), np.float32)[:, ::2],
        _read_only(),
        [0] * 8,
        X,
    ],
    ids=["shape", "dtype", "big-endian", "strided", "read-only", "list", "overlap"],
)
def test_an_unusable_out_is_refused(loaded: Bundle, out: Any) -> None:
    with pytest.raises(DataError, match="out="):
        loaded.run(X, out=out)


def test_out_may_lie_beside_the_input_but_not_overlap(loaded: Bundle) -> None:
    room = np.zeros((1, 20), np.float32)
    x, out = room[:, :8], room[:, 8:16]
    x[:] = X
    np.testing.assert_array_equal(loaded.run(x, out=out), loaded.run(X))
    with pytest.raises(DataError, match="overlaps"):
        loaded.run(x, out=room[:, 7:15])
    with pytest.raises(DataError, match="overlaps"):
        loaded.run(out, out=room[:, 7:15])


def test_profile_gives_one_time_per_layer(loaded: Bundle) -> None:
    assert len(loaded.profile(X)) == len(loaded.entries["full"].layers) == 2
    assert all(0 <= time < 1e9 for time in loaded.profile(X))


@pytest.mark.parametrize("compiled", [True, False])
def test_an_error_code_becomes_words(
    libraries: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    bundle = _tiny.make_bundle(tmp_path / "b", libraries(_tiny.HOST, "-DFAIL"), _tiny.manifest())
    toolchain.fast_call()
    if not compiled:
        monkeypatch.setattr(fast_call, "module", lambda: None)
    with pytest.raises(DeviceError, match="code -2\nthe CPU lacks a required feature"):
        edgecsi.load(bundle.path).run(X)


def test_a_call_leaves_no_reference_behind(loaded: Bundle) -> None:
    x, out = X.copy(), np.zeros((1, 8), np.float32)
    pair = X[:, :3].copy(), X[:, 3:6].copy()
    calls = [
        lambda: loaded.run(x),
        lambda: loaded.run(x, out=out),
        lambda: loaded.run(*pair, entry="pair"),
    ]
    for one in calls:
        one()
    counts = [sys.getrefcount(array) for array in (x, out, *pair)]
    for one in calls * 50:
        one()
    assert [sys.getrefcount(array) for array in (x, out, *pair)] == counts
    assert sys.getrefcount(loaded.run(x)) <= 2


def test_a_broken_or_missing_module_is_done_without(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "fast_call.so"
    monkeypatch.setattr(fast_call, "place", lambda: broken)
    for content in (None, b"", b"no library"):
        if content is not None:
            broken.write_bytes(content)
        np.testing.assert_allclose(edgecsi.load(bundle.path).run(X), _tiny.full(X), rtol=1e-6)


def test_eight_threads_agree_with_one(loaded: Bundle) -> None:
    inputs = np.random.default_rng(2).normal(size=(8, 200, 1, 8)).astype(np.float32)
    wanted = np.array([[loaded.run(x) for x in part] for part in inputs])
    found = np.empty_like(wanted)

    def work(i):
        for j, x in enumerate(inputs[i]):
            if i % 2:
                loaded.run(x, out=found[i, j])
            else:
                found[i, j] = loaded.run(x)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, wanted)


def test_a_cpu_without_a_feature_is_refused_by_name(libraries: Callable[..., Path], tmp_path: Path) -> None:
    about = _tiny.manifest(features=("avx9000",))
    library = _tiny.compile_library(tmp_path / "lib.so", about)
    bundle = _tiny.make_bundle(tmp_path / "b", library, about)
    with pytest.raises(DeviceError, match="needs avx9000"):
        edgecsi.load(bundle.path)


def test_another_architecture_is_refused_by_name(libraries: Callable[..., Path], tmp_path: Path) -> None:
    other = "aarch64" if _tiny.HOST == "x86_64" else "x86_64"
    bundle = _tiny.make_bundle(tmp_path / "b", libraries(other), _tiny.manifest(other))
    with pytest.raises(DeviceError, match=f"built for {other}.*this machine is {cpu.machine()}"):
        edgecsi.load(bundle.path)


def test_a_rebuilt_bundle_is_loaded_anew(bundle: Bundle, libraries: Callable[..., Path]) -> None:
    """dlopen knows libraries by their names; the second must not be the first again."""
    before = edgecsi.load(bundle.path).run(X)
    about = _tiny.manifest()
    source = _tiny.SOURCE.replace("gain = 2", "gain = 3")
    library = _tiny.compile_library(bundle.path.parent / "second.so", about, source=source)
    write_bundle(bundle.path, about, _tiny.files(library, about))
    assert not np.allclose(edgecsi.load(bundle.path).run(X), before)


def test_loading_imports_neither_torch_nor_tvm(bundle: Bundle) -> None:
    code = (
        "import sys, edgecsi; edgecsi.load(sys.argv[1]);"
        "assert not {'torch', 'tvm', 'tvm_ffi', 'scipy', 'jinja2'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, bundle.path], check=True)


def test_the_public_names() -> None:
    assert {"__version__", "load"} <= set(edgecsi.__all__)
    assert edgecsi.__version__.count(".") >= 2
    with pytest.raises(AttributeError):
        edgecsi.no_such_name  # noqa: B018


def test_golden_values_come_back(bundle: Bundle) -> None:
    inputs, outputs = read_golden(bundle, "full")
    assert inputs[0].shape == outputs[0].shape == (3, 1, 8)
    np.testing.assert_allclose(edgecsi.load(bundle.path).run(inputs[0][1]), outputs[0][1], rtol=1e-6)


def test_golden_values_of_a_wrong_shape_are_not_written() -> None:
    entries = {"full": dataclasses.replace(_tiny.manifest().entries["full"])}
    with pytest.raises(ValueError, match=r"full\.csi"):
        golden_npz(entries, {"full": {"csi": np.zeros((3, 8)), "reconstruction": np.zeros((3, 1, 8))}})


def _mappings(library):
    return Path("/proc/self/maps").read_text().count(str(library))


def test_closing_unloads_the_library(bundle: Bundle) -> None:
    with edgecsi.load(bundle.path) as loaded:
        loaded.run(np.ones((1, 8)))
        assert _mappings(bundle.library) > 0
    assert _mappings(bundle.library) == 0
    loaded.close()  # once more does no harm
    for use in (lambda: loaded.run(np.ones((1, 8))), lambda: loaded.run_many(np.ones((2, 8)))):
        with pytest.raises(UsageError, match="is closed"):
            use()


def test_a_library_goes_with_its_object_or_stays_for_others(bundle: Bundle) -> None:
    loaded, other = edgecsi.load(bundle.path), edgecsi.load(bundle.path)
    function = other.function("full")
    other.close()
    del loaded
    gc.collect()
    del other
    assert _mappings(bundle.library) > 0  # somebody still holds a function of it
    x, y = np.ones((1, 8), np.float32), np.empty((1, 8), np.float32)
    assert function(x.ctypes.data, y.ctypes.data) == 0
    del function
    assert _mappings(bundle.library) == 0


@pytest.mark.parametrize(
    ("reason", "error", "words"),
    [
        ("FILE: failed to map segment from shared object", ToolchainError, "noexec"),
        (
            "/lib/libc.so.6: version `GLIBC_2.38' not found (required by FILE)",
            DeviceError,
            "needs glibc 2.38",
        ),
        ("libm.so.6: cannot open shared object file: No such file or directory", DeviceError, "libm.so.6"),
        ("FILE: invalid ELF header", BundleError, "invalid ELF header"),
    ],
)
def test_a_library_that_does_not_load_says_why(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, reason: str, error: str, words: str
) -> None:
    def refuse(name, mode):
        raise OSError(reason.replace("FILE", name))

    monkeypatch.setattr(shared_library, "dlopen", refuse)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))
    with pytest.raises(error, match=words) as caught:
        edgecsi.load(bundle.path)
    assert ("2.28" in str(caught.value)) == ("GLIBC" in reason)


def test_broken_golden_values_are_refused(bundle: Bundle) -> None:
    whole = (bundle.path / "golden.npz").read_bytes()
    lies = whole.replace(b"(3, 1, 8)", b"(3, 1, 9)")
    huge = whole.replace(b"'shape': (3, 1, 8), }   ", b"'shape': (999999999,8)}")
    for broken in (
        b"",
        whole[:40],
        whole[:-30],
        lies,
        huge,
        whole.replace(b"<f4", b"|O4"),
        whole[:200] + bytes(400),
    ):
        (bundle.path / "golden.npz").write_bytes(broken)
        with pytest.raises(BundleError, match="golden"):
            read_golden(bundle, "full")
