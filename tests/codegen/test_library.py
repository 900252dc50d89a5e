"""The library itself: what it needs, what it exports, both of its faces, and many threads at once."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import edgecsi
from edgecsi import cpu
from edgecsi import target as targets
from edgecsi.bundle import Bundle, read_golden
from edgecsi.codegen import library as codegen
from edgecsi.codegen import target_features
from edgecsi.errors import TargetError
from tests._builds import NETWORKS, build_for, lowered

FLOATS = ctypes.POINTER(ctypes.c_float)
ENTRIES = ("encoder", "decoder", "full")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small CsiNet for this machine."""
    out = tmp_path_factory.mktemp("library") / "csinet-cr64"
    result = build_for("csinet-cr64", "host", out, allow_random=True)
    assert result.bundle is not None
    return result.bundle


@pytest.fixture(scope="module")
def library(bundle: Bundle) -> ctypes.CDLL:
    edgecsi.load(bundle.path)  # refuses a CPU that cannot run it
    loaded = ctypes.CDLL(str(bundle.library))
    loaded.csinet_cr64_strerror.restype = loaded.csinet_cr64_manifest.restype = ctypes.c_char_p
    return loaded


def _sample(bundle: Bundle, entry: str) -> tuple[np.ndarray, np.ndarray]:
    (x,), (y,) = read_golden(bundle, entry)
    return np.ascontiguousarray(x[0]), y[0]


def _pointer(array: np.ndarray) -> ctypes._Pointer:
    return array.ctypes.data_as(FLOATS)


def _readelf(*arguments: str | Path) -> str:
    return subprocess.run(
        ["readelf", "-W", *arguments], env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip


@pytest.mark.needs("readelf")
def test_it_needs_nothing_but_libc_and_libm(bundle: Bundle) -> None:
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", _readelf("-d", bundle.library)))
    assert {"libc.so.6"} <= needed <= {"libc.so.6", "libm.so.6"}
    versions = re.findall(r"GLIBC_(\d+)\.(\d+)", _readelf("--dyn-syms", bundle.library))
    floor = tuple(int(n) for n in bundle.manifest.target.glibc.split("."))
    assert (0, 0) < max((int(major), int(minor)) for major, minor in versions) <= floor


@pytest.mark.needs("readelf")
def test_it_exports_its_functions_and_nothing_that_can_be_written(bundle: Bundle) -> None:
    exported = {}
    for line in _readelf("--dyn-syms", bundle.library).splitlines():
        cells = line.split()
        if len(cells) >= 8 and cells[4] in ("GLOBAL", "WEAK") and cells[6] != "UND":
            exported[cells[7].split("@")[0]] = cells[3]
    assert set(exported.values()) == {"FUNC"}
    faces = {f"csinet_cr64_{e}{suffix}" for e in ENTRIES for suffix in ("", "_ws", "_profile")}
    faces |= {f"__tvm_ffi_{e}" for e in ENTRIES}
    assert set(exported) == faces | {"csinet_cr64_strerror", "csinet_cr64_manifest"}


@pytest.mark.needs("readelf")
def test_neither_the_stack_nor_the_weights_can_be_executed(bundle: Bundle) -> None:
    segments = _readelf("-l", bundle.library)
    stack = next(line for line in segments.splitlines() if "GNU_STACK" in line)
    assert "RWE" not in stack
    assert not re.search(r"LOAD.*RWE", segments)


def test_two_builds_are_byte_identical(tmp_path: Path) -> None:
    """In two processes that hash differently, into folders of different names."""
    build_for(f"{NETWORKS}:views", "x86", tmp_path / "here")
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    command = [sys.executable, "-m", "edgecsi", "build", f"{NETWORKS}:views", "--target", "x86"]
    subprocess.run(
        [*command, "-o", tmp_path / "there"], env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    first, second = (
        {p.relative_to(tmp_path / s): p.read_bytes() for p in (tmp_path / s).rglob("*") if p.is_file()}
        for s in ("here", "there")
    )
    assert first == second


@pytest.mark.parametrize("entry", ENTRIES)
def test_all_faces_give_the_same_numbers(bundle: Bundle, library: ctypes.CDLL, entry: str) -> None:
    import tvm

    described = bundle.entry(entry)
    x, golden = _sample(bundle, entry)
    expected = edgecsi.load(bundle.path).run(x, entry=entry)
    assert np.abs(expected - golden).max() <= 1e-5 * np.abs(golden).max()
    room = np.empty(described.workspace + 64, np.uint8)
    workspace = ctypes.c_void_p((room.ctypes.data + 63) // 64 * 64)

    on_the_stack, given, profiled = (np.empty_like(expected) for _ in range(3))
    times = (ctypes.c_double * len(described.layers))(*[-1.0] * len(described.layers))
    assert library[f"csinet_cr64_{entry}"](_pointer(x), _pointer(on_the_stack)) == 0
    assert library[f"csinet_cr64_{entry}_ws"](_pointer(x), _pointer(given), workspace) == 0
    assert library[f"csinet_cr64_{entry}_profile"](_pointer(x), _pointer(profiled), workspace, times) == 0
    assert all(0 <= t < 1e9 for t in times)
    assert sum(times) > 0

    module = tvm.runtime.load_module(str(bundle.library))
    through_tvm = tvm.runtime.tensor(np.zeros_like(expected))
    module[entry](tvm.runtime.tensor(x), through_tvm)
    for found in (on_the_stack, given, profiled, through_tvm.numpy()):
        assert np.array_equal(found, expected)


def test_null_pointers_are_codes_not_crashes(bundle: Bundle, library: ctypes.CDLL) -> None:
    x, y = _sample(bundle, "full")
    y = y.copy()
    for arguments in ((None, _pointer(y)), (_pointer(x), None)):
        assert library.csinet_cr64_full(*arguments) == -1
    assert library.csinet_cr64_full_ws(_pointer(x), _pointer(y), None) == -1
    workspace = ctypes.create_string_buffer(bundle.entry("full").workspace + 64)
    assert library.csinet_cr64_full_profile(_pointer(x), _pointer(y), workspace, None) == -1
    messages = {library.csinet_cr64_strerror(code) for code in (0, -1, -2, -3, -4, -99)}
    assert len(messages) >= 5


def test_tvms_face_refuses_what_does_not_fit(bundle: Bundle) -> None:
    import tvm

    function = tvm.runtime.load_module(str(bundle.library))["full"]
    good = np.zeros((1, 2, 32, 32), np.float32)

    def tensor(array: np.ndarray) -> object:
        return tvm.runtime.tensor(array)

    wrong = [
        [tensor(good)],
        [tensor(good), tensor(good), tensor(good)],
        [tensor(good[0]), tensor(good)],
        [tensor(good), tensor(np.zeros((1, 2, 32, 31), np.float32))],
        [tensor(good.astype(np.float64)), tensor(good)],
        [3.5, tensor(good)],
    ]
    for arguments in wrong:
        with pytest.raises((ValueError, RuntimeError)):
            function(*arguments)
    function(tensor(good), tensor(good))  # and still works


def test_eight_threads_at_once_agree_with_one(bundle: Bundle) -> None:
    loaded = edgecsi.load(bundle.path)
    inputs = np.random.default_rng(0).random((64, 1, 2, 32, 32), np.float32)
    alone = [loaded.run(x) for x in inputs]

    def work(number: int) -> bool:
        order = np.random.default_rng(number).permutation(len(inputs))
        return all(np.array_equal(loaded.run(inputs[i]), alone[i]) for i in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


@pytest.mark.needs("cc")
def test_the_c_example_reproduces_the_golden_values(bundle: Bundle, tmp_path: Path) -> None:
    compiled = subprocess.run(
        ["cc", "-Wall", "-Werror", "-O2", "main.c", "-L..", "-lcsinet-cr64", "-lm", "-o", tmp_path / "main"],
        cwd=bundle.path / "example", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr
    done = subprocess.run(
        [tmp_path / "main", bundle.path / "golden.npz"], env={"LD_LIBRARY_PATH": str(bundle.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok,") == len(ENTRIES)


def test_a_cpu_without_a_feature_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit 16 of CPUID leaf 1 and the top bit of HWCAP are set by no CPU."""
    target = targets.host()
    if target.arch == "x86_64":
        monkeypatch.setitem(target_features.X86_BITS, "avx9000", ("leaf1_c", 16))
    else:
        monkeypatch.setitem(target_features.ARM_BITS, "avx9000", ("hwcap2", 63))
    demanding = replace(target, features=(*target.features, "avx9000"))
    entry = lowered(torch.nn.Linear(8, 4), torch.zeros(1, 8), "host")
    path = tmp_path / "libnet.so"
    path.write_bytes(codegen.build_library("net", [entry], codegen.gather([entry]), b"{}", demanding))
    library = ctypes.CDLL(str(path))
    library.net_strerror.restype = library.net_manifest.restype = ctypes.c_char_p
    x, y = np.ones(8, np.float32), np.full(4, 7, np.float32)
    assert library.net_full(_pointer(x), _pointer(y)) == -2
    assert library.net_strerror(-2) == b"avx9000"
    assert library.net_manifest() == b"{}"
    assert (y == 7).all()


@pytest.mark.parametrize("name", targets.list_targets())
def test_a_library_asks_for_every_feature_its_target_declares(name: str) -> None:
    target = targets.load(name)
    asked = target_features.feature_bits(target)
    assert [feature for feature, _, _ in asked[: len(target.features)]] == list(target.features)


def test_every_feature_that_llvm_may_use_can_be_asked_for() -> None:
    for arch, bits in (("x86_64", target_features.X86_BITS), ("aarch64", target_features.ARM_BITS)):
        assert set(cpu.LLVM_FEATURE[arch]) == set(bits)


def test_a_feature_that_no_library_can_ask_for_is_refused() -> None:
    demanding = replace(targets.load("rpi5"), features=(*targets.load("rpi5").features, "mte9"))
    with pytest.raises(TargetError, match="asks for mte9, which a library cannot check"):
        target_features.refuse_undeclared_features(demanding)


def test_wide_registers_must_be_saved_by_the_operating_system() -> None:
    states = {
        mask for _, word, mask in target_features.feature_bits(targets.load("x86-64-v4")) if word == "xcr0"
    }
    assert states == {0x6, 0xE6}
