"""Reading and writing channels, and refusing files that are none."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from edgecsi.channels.files import as_samples, describe, load, read, scaled, write
from edgecsi.channels.shipped import test_set as shipped_set
from edgecsi.errors import DataError, InputError, Notice


@pytest.fixture
def samples() -> np.ndarray:
    return shipped_set(6)


def as_npy(path: Path, array: np.ndarray) -> None:
    np.save(path, array)


def as_npz(path: Path, array: np.ndarray) -> None:
    np.savez_compressed(path, channels=array)


def as_mat5(path: Path, array: np.ndarray) -> None:
    scipy.io.savemat(path, {"HT": array}, do_compression=True)


def as_mat73(path: Path, array: np.ndarray) -> None:
    """As MATLAB writes it: HDF5 behind a header of 512 bytes, dimensions reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("HT", data=array.T, compression="gzip")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


FORMATS = {".npy": as_npy, ".npz": as_npz, "5.mat": as_mat5, "73.mat": as_mat73}


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("flat", [False, True])
def test_every_format_gives_the_same_samples(
    ending: str, flat: bool, tmp_path: Path, samples: np.ndarray
) -> None:
    path = tmp_path / f"set{ending}"
    FORMATS[ending](path, samples.reshape(6, -1) if flat else samples)
    loaded = load(path)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, samples)
    loaded[:] = 0
    np.testing.assert_array_equal(load(path), samples, "the file itself changed")


def test_doubles_as_matlab_writes_them_are_taken(tmp_path: Path, samples: np.ndarray) -> None:
    as_mat5(tmp_path / "a.mat", samples.reshape(6, -1).astype(np.float64))
    np.testing.assert_array_equal(load(tmp_path / "a.mat"), samples)


def test_one_sample_without_a_batch(tmp_path: Path, samples: np.ndarray) -> None:
    np.save(tmp_path / "one.npy", samples[0])
    np.testing.assert_array_equal(load(tmp_path / "one.npy"), samples[:1])


def test_hdf5_that_python_wrote_is_not_turned_around(tmp_path: Path, samples: np.ndarray) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["HT"] = samples.reshape(6, -1)
    np.testing.assert_array_equal(load(tmp_path / "a.mat"), samples)


def test_a_file_without_the_variable_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "all.mat"
    scipy.io.savemat(path, {"HF_all": np.ones((4, 32, 125), np.complex64)})
    with pytest.raises(DataError, match="no variable HT"):
        load(path)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_what_is_written_is_read_back_exactly(tmp_path: Path, suffix: str, samples: np.ndarray) -> None:
    path = tmp_path / f"out{suffix}"
    write(path, samples)
    np.testing.assert_array_equal(load(path), samples)
    assert os.listdir(tmp_path) == [path.name]


def test_bad_channels_are_not_written(tmp_path: Path, samples: np.ndarray) -> None:
    with pytest.raises(DataError):
        write(tmp_path / "out.npz", samples * np.nan)
    with pytest.raises(DataError, match=r"use \.npz or \.npy"):
        write(tmp_path / "out.mat", samples)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "file" / "out.npz", samples)
    assert os.listdir(tmp_path) == ["file"]


def test_a_description_tells_where_the_energy_is() -> None:
    info = describe(shipped_set(subset="cdl-c"))
    assert info.samples == 1024
    assert 0 <= info.minimum < 0.5 < info.maximum <= 1
    assert 0.02 < info.std < 0.03
    assert 0.9 < info.strongest_tap < 1


def zip_bomb(path: Path) -> None:
    """An array of a gigabyte of zeros in a megabyte, with honest headers."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (131072, 2048)}
    )
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("channels.npy", "w") as file,
    ):
        file.write(header.getvalue())
        zeros = bytes(1 << 20)
        for _ in range(64):  # short of what the header claims; neither is ever read
            file.write(zeros)


def lying_npz(path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 2048)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("channels.npy", header.getvalue() + bytes(8192))


def lying_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 2048)}
        )
        file.write(bytes(8192))


def hdf5_bomb(path: Path) -> None:
    """A hundred gigabytes that were never stored."""
    with h5py.File(path, "w") as file:
        file.create_dataset("HT", shape=(2048, 12_500_000), dtype="f4", chunks=(2048, 64), compression="gzip")


def hdf5_elsewhere(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["HT"] = h5py.ExternalLink("/etc/passwd", "HT")


def truncated(make: Callable[[Path, np.ndarray], None]) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        make(path, shipped_set(6).reshape(6, -1))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return cut


def holding(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(path, array)


NAN = np.full((1, 2048), 0.5, np.float32)
NAN[0, 7] = np.nan

BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "not there": ("a.npy", lambda path: None, "no such file"),
    "unknown kind": ("a.csv", lambda path: path.write_text("1,2"), "unknown kind"),
    "empty file": ("a.npy", lambda path: path.write_bytes(b""), "cannot be read"),
    "empty array": ("a.npy", holding(np.zeros((0, 2, 32, 32), np.float32)), "no samples"),
    "wrong shape": ("a.npy", holding(np.zeros((4, 3, 32, 32), np.float32)), "shape"),
    "a single number": ("a.npy", holding(np.float32(1)), "shape"),
    "complex": ("a.npy", holding(np.zeros((1, 2048), np.complex64)), "complex64"),
    "text": ("a.npy", holding(np.full((1, 2048), "x")), "<U1"),
    "NaN": ("a.npy", holding(NAN), "1 entries are NaN"),
    "pickle": ("a.npy", holding(np.array([{"a": 1}] * 2048, dtype=object)[None]), "Python objects"),
    "text as npy": ("a.npy", lambda path: path.write_text("0.5 0.5\n" * 99), "it looks like a text"),
    "random bytes as npy": ("a.npy", lambda path: path.write_bytes(b"\xff" * 4096), "no kind that is known"),
    "a folder": ("a.npy", lambda path: path.mkdir(), "is a folder"),
    "pickle in npz": (
        "a.npz",
        lambda path: np.savez(path, channels=np.array([[None] * 2048], dtype=object)),
        "needs pickle",
    ),
    "several arrays": (
        "a.npz",
        lambda path: np.savez(path, a=NAN, b=NAN),
        "it holds a [1, 2048], b [1, 2048]",
    ),
    "npz without arrays": ("a.npz", lambda path: zipfile.ZipFile(path, "w").close(), "holds nothing"),
    "npy claims too much": ("a.npy", lying_npy, "cannot be read"),
    "npz claims too much": ("a.npz", lying_npz, "claims"),
    "zip bomb": ("a.npz", zip_bomb, "claims"),
    "levels that do not fit": ("a.npz", lambda path: np.savez(path, channels=NAN, levels=0), "levels"),
    "cut npy": ("a.npy", truncated(as_npy), "cannot be read"),
    "cut npz": ("a.npz", truncated(as_npz), "cannot be read"),
    "cut mat": ("a.mat", truncated(as_mat5), "cannot be read"),
    "cut hdf5": ("a.mat", truncated(as_mat73), "cannot be read"),
    "mat without HT": (
        "a.mat",
        lambda path: scipy.io.savemat(path, {"X": NAN, "Y": NAN}),
        "it holds X [1, 2048], Y",
    ),
    "a web page": ("a.mat", lambda path: path.write_text("<html>Sign in</html>"), "it looks like a web page"),
    "an array as mat": ("a.mat", lambda path: path.write_bytes(b"\x93NUMPY" + bytes(99)), "a NumPy array"),
    "mat with text": ("a.mat", lambda path: scipy.io.savemat(path, {"HT": "hello"}), "class char"),
    "random bytes as mat": ("a.mat", lambda path: path.write_bytes(os.urandom(4096)), "cannot be read"),
    "hdf5 bomb": ("a.mat", hdf5_bomb, "claims"),
    "hdf5 link to another file": ("a.mat", hdf5_elsewhere, "links are not followed"),
    "mat claims too much": (
        "a.mat",
        lambda path: path.write_bytes(
            mat5_header() + struct.pack("<IIIIIIiiII", 14, 1 << 30, 6, 8, 6, 0, 5, 8, 1 << 20, 1 << 20)
        ),
        "",
    ),
}


def mat5_header() -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_by_name_and_with_advice(case: str, tmp_path: Path) -> None:
    name, make, words = BAD[case]
    path = tmp_path / name
    make(path)
    with pytest.raises(DataError) as refused:
        read(path)
    assert str(path) in refused.value.what
    assert words in str(refused.value)
    assert refused.value.fix


SHAPES = {"codewords": (512,), "detector": (60,), "eigenvectors": (2, 32, 13)}


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("kind", SHAPES)
def test_inputs_of_a_networks_own_shape(tmp_path: Path, kind: str, ending: str) -> None:
    shape = SHAPES[kind]
    array = np.random.default_rng(0).standard_normal((20, *shape)).astype(np.float32)
    FORMATS[ending](tmp_path / f"a{ending}", array)
    np.testing.assert_array_equal(load(tmp_path / f"a{ending}", shape=shape), array)
    with pytest.raises(DataError, match="the array has the shape"):
        load(tmp_path / f"a{ending}")


def test_samples_of_one_number(tmp_path: Path) -> None:
    array = np.arange(5, dtype=np.float32)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(load(tmp_path / "a.npy", shape=()), array)


def test_a_single_variable_of_any_name_is_taken_and_of_several_the_one_named(tmp_path: Path) -> None:
    a, b = np.zeros((3, 60), np.float32), np.ones((3, 60), np.float32)
    scipy.io.savemat(tmp_path / "one.mat", {"received": b})
    np.testing.assert_array_equal(load(tmp_path / "one.mat", shape=(60,)), b)
    scipy.io.savemat(tmp_path / "two.mat", {"sent": a, "received": b})
    np.savez(tmp_path / "two.npz", sent=a, received=b, other=np.zeros(5))
    for path in (tmp_path / "two.mat", tmp_path / "two.npz"):
        with pytest.raises(DataError, match=r"received \[3, 60\], sent \[3, 60\]"):
            load(path, shape=(60,))
        np.testing.assert_array_equal(load(f"{path}#received", shape=(60,)), b)
        np.testing.assert_array_equal(load(path, shape=(60,), variable="sent"), a)


def test_values_beyond_the_convention_are_said_and_rounding_is_not(
    tmp_path: Path, samples: np.ndarray
) -> None:
    samples[0, 0, 0, 0] = 1.0000001
    np.save(tmp_path / "a.npy", samples)
    load(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", samples - 0.5)
    with pytest.warns(Notice, match=r"values reach from -0\.\d+ to 0\.5"):
        np.testing.assert_array_equal(load(tmp_path / "b.npy"), samples - np.float32(0.5))


def test_complex_channels_are_scaled_on_request() -> None:
    rng = np.random.default_rng(0)
    h = rng.standard_normal((4, 32, 32)) + 1j * rng.standard_normal((4, 32, 32))
    with pytest.raises(DataError, match="edgecsi data convert h --scale"):
        as_samples(h, "h")
    found = scaled(h)
    assert found.shape == (4, 2, 32, 32)
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.abs(found - 0.5).reshape(4, -1).max(1) == pytest.approx(0.5)
    z = (found[:, 0] - 0.5) + 1j * (found[:, 1] - 0.5)
    ratio = z / h
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-3, atol=1e-3)
