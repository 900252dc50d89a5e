"""Channels from and to files: ``.npy``, ``.npz`` and the COST2100 ``.mat`` files of the CSI-feedback papers.

Nothing in a file is executed, and every size that a file states is checked against what the file can hold
before memory is taken.
"""

from __future__ import annotations

import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi import disk
from edgecsi.channels.generate import Progress, generate, is_spec
from edgecsi.channels.shipped import SUBSETS, test_set
from edgecsi.errors import DataError, ToolchainError

SAMPLE = (2, 32, 32)
SUBCARRIERS = 125

_ENTRIES = math.prod(SAMPLE)
_MAX_BYTES = 16 << 30
_MAX_RATIO = 200  # real channels compress by less than 10; deflate's limit, a zip bomb, is 1032
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_EXPECTED = "expected [N, 2, 32, 32] or [N, 2048] real numbers in [0, 1], 0.5 meaning zero"


@dataclass(frozen=True)
class ChannelInfo:
    """What a set of channels looks like.

    ``std`` is the deviation of the entries from 0.5; ``strongest_tap`` the share of a sample's energy in its
    strongest delay tap, the mean over samples.
    """

    samples: int
    minimum: float
    maximum: float
    std: float
    strongest_tap: float


def load(source: str | Path, *, progress: Progress | None = None) -> NDArray[Any]:
    """Channels from wherever DATA says.

    Args:
        source: a ``.npy``, ``.npz`` or ``.mat`` file, a generator spec such as ``cdl-c:1000:seed=7``, or
            ``test`` / ``test-cdl-c`` for the set that ships with edgecsi.
        progress: called with (done, wanted) while samples are generated.

    Returns:
        float32 ``[N, 2, 32, 32]`` (real/imaginary, angle, delay) in [0, 1], N ≥ 1.

    Raises:
        DataError: the source is no valid set of channels.
        ToolchainError: a package of the ``[data]`` extra is missing.
    """
    text = os.fspath(source)
    if text == "test" or (text.startswith("test-") and text.removeprefix("test-") in SUBSETS):
        return test_set(subset=text.removeprefix("test").removeprefix("-") or SUBSETS[0])
    if is_spec(text):
        return generate(text, progress=progress)
    return read(Path(source))


def read(path: Path) -> NDArray[Any]:
    """Channels from a ``.npy``, ``.npz`` or ``.mat`` file; returns and raises as :func:`load`."""
    return as_samples(_read_array(path, ("channels", "HT")), str(path))


def read_frequency(path: Path) -> NDArray[Any]:
    """The true frequency response that COST2100 test files carry as ``HF_all``.

    Returns:
        complex64 ``[N, 32, 125]`` (antenna, subcarrier), to be given to :func:`edgecsi.channels.metrics.rho`.

    Raises:
        DataError: no such variable, another shape, NaN or infinity.
    """
    array = _read_array(path, ("HF_all",))
    if array.ndim < 2 or array.shape[0] == 0 or math.prod(array.shape[1:]) != 32 * SUBCARRIERS:
        raise DataError(
            f"{path}: HF_all has the shape {list(array.shape)}", "expected [N, 32, 125]", "export it again"
        )
    response: NDArray[Any] = array.reshape(len(array), 32, SUBCARRIERS).astype(np.complex64)
    if not np.isfinite(response).all():
        raise DataError(f"{path}: HF_all holds NaN or infinity", "the file is damaged", "export it again")
    return response


def as_samples(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Check an array and bring it to float32 ``[N, 2, 32, 32]``.

    Args:
        array: ``[N, 2, 32, 32]``, ``[N, 2048]`` or one sample without N, any real dtype.
        name: what to call it in an error.

    Raises:
        DataError: empty, wrong shape or dtype, NaN, infinity, or values outside [0, 1].
    """
    if array.shape in (SAMPLE, (_ENTRIES,)):
        array = array[None]
    if array.shape[1:] not in (SAMPLE, (_ENTRIES,)):
        raise DataError(f"{name}: the array has the shape {list(array.shape)}", _EXPECTED, _fix_shape(array))
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name}: the array holds {array.dtype}", _EXPECTED, "convert it to float32")
    if len(array) == 0:
        raise DataError(f"{name} holds no samples", "its first dimension is 0", "give at least one sample")
    samples = np.array(array, dtype=np.float32, order="C").reshape(
        -1, *SAMPLE
    )  # a copy, never the file's map
    low, high = float(samples.min()), float(samples.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int(np.count_nonzero(~np.isfinite(samples)))
        raise DataError(f"{name}: {bad} entries are NaN or infinite", _EXPECTED, "drop the damaged samples")
    if low < 0 or high > 1:
        raise DataError(
            f"{name}: values reach from {low:g} to {high:g}",
            _EXPECTED,
            "divide each sample by twice its largest |re| or |im| and add 0.5",
        )
    return samples


def write(path: Path, samples: NDArray[Any]) -> None:
    """Write channels as ``.npz`` (compressed, array ``channels``) or ``.npy``, whole or not at all.

    Raises:
        DataError: the samples are no valid channels, the name has another suffix.
        InputError, ToolchainError: writing failed, see :func:`edgecsi.disk.refusal`.
    """
    samples = as_samples(samples, "the channels to be written")
    if path.suffix not in (".npz", ".npy"):
        raise DataError(
            f"{path}: cannot write {path.suffix or 'a file without suffix'}", "", "use .npz or .npy"
        )
    with disk.whole(path) as beside, beside.open("wb") as file:
        if path.suffix == ".npz":
            np.savez_compressed(file, channels=samples)
        else:
            np.save(file, samples)


def describe(samples: NDArray[Any]) -> ChannelInfo:
    """Figures of a set ``[N, 2, 32, 32]`` for ``edgecsi data info``."""
    power = np.square(samples.astype(np.float64) - 0.5)
    per_tap = power.sum(axis=(1, 2))
    total = per_tap.sum(axis=1)
    share = per_tap.max(axis=1) / np.where(total > 0, total, 1)
    return ChannelInfo(
        samples=len(samples),
        minimum=float(samples.min()),
        maximum=float(samples.max()),
        std=float(np.sqrt(power.mean())),
        strongest_tap=float(share.mean()),
    )


def _fix_shape(array: NDArray[Any]) -> str:
    if array.dtype.kind == "c":
        return "stack real and imaginary parts along a new second dimension, scale and add 0.5"
    return "reshape it; the order of a sample is real/imaginary, angle, delay"


def _read_array(path: Path, names: tuple[str, ...]) -> NDArray[Any]:
    """The array of a file; from a file of several, the first of ``names`` that is there."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file",
            "DATA is a .npy, .npz or .mat file, a spec such as cdl-c:1000:seed=7, or test",
            "check the name",
        )
    readers = {".npy": _read_npy, ".npz": _read_npz, ".mat": _read_mat}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: unknown kind of file", f"known are {', '.join(readers)}", "convert it to one of these"
        )
    try:
        return reader(path, names)
    except (DataError, ToolchainError):
        raise
    # Other people's parsers meet strangers' files below: whatever they raise, the file is bad.
    except Exception as error:
        raise DataError(
            f"{path} cannot be read",
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            "it is damaged, cut short or of another format; export it again",
        ) from error


def _read_npy(path: Path, names: tuple[str, ...]) -> NDArray[Any]:
    # A memory map of a file shorter than its header claims fails before memory is taken.
    array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    return array


def _read_npz(path: Path, names: tuple[str, ...]) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        name = next((name for name in names if name in members), None)
        if name is None:
            if len(members) != 1:
                raise DataError(
                    f"{path} holds {', '.join(name[:60] for name in sorted(members)[:10]) or 'nothing'}",
                    f"none of them is called {' or '.join(names)}",
                    "save one array, or call it channels",
                )
            name = next(iter(members))
        array = _read_member(path, archive, members[name])
        if "levels" in members:  # the packed form of the shipped test set
            levels = _read_member(path, archive, members["levels"])
            if array.dtype.kind != "u" or levels.shape != () or not 0 < float(levels) < 2**32:
                raise DataError(f"{path}: levels do not fit the array", "", "write the file again")
            return array.astype(np.float32) / np.float32(levels)
        return array


def _read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(info) as file:
        shape, dtype = _npy_header(file)
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise DataError(
            f"{path}: {info.filename} needs pickle", "a pickle can run code", "save plain numbers"
        )
    if size > info.file_size:
        raise DataError(
            f"{path}: {info.filename} claims {size} bytes and has {info.file_size}",
            "its header does not match its contents",
            "export it again",
        )
    _check_size(path, info.file_size, info.compress_size)
    with archive.open(info) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    return shape, dtype


def _read_mat(path: Path, names: tuple[str, ...]) -> NDArray[Any]:
    with path.open("rb") as file:
        start = file.read(520)
    # A v7.3 file is HDF5 behind a 512-byte MATLAB header; a bare HDF5 file is taken too.
    if _HDF5_MAGIC in (start[:8], start[512:520]):
        return _read_hdf5(path, names)
    scipy_io = _optional("scipy.io")
    listed = {name: (shape, kind) for name, shape, kind in scipy_io.whosmat(path)}
    name = _variable(path, names, listed)
    shape, kind = listed[name]
    widths = {
        "double": 8,
        "single": 4,
        "int8": 1,
        "uint8": 1,
        "int16": 2,
        "uint16": 2,
        "int32": 4,
        "uint32": 4,
    }
    if kind not in widths:
        raise DataError(f"{path}: {name} is of class {kind}", "expected numbers", "export a numeric matrix")
    _check_size(path, math.prod(shape), path.stat().st_size)  # values may be stored in one byte each
    array: NDArray[Any] = scipy_io.loadmat(path, variable_names=[name])[name]
    return array


def _read_hdf5(path: Path, names: tuple[str, ...]) -> NDArray[Any]:
    h5py = _optional("h5py")
    with h5py.File(path, "r") as file:
        name = _variable(path, names, dict.fromkeys(file))
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise DataError(
                f"{path}: {name} lies in another file", "links are not followed", "export it whole"
            )
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
            raise DataError(f"{path}: {name} is not a plain array", "", "export a numeric matrix")
        _check_size(path, dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size())
        array = np.asarray(dataset[()])
    if array.dtype.names is not None and set(array.dtype.names) == {"real", "imag"}:
        array = array["real"] + 1j * array["imag"]
    # MATLAB stores columns first, so HDF5 shows its dimensions in reverse; other writers do not.
    sample_sizes = (_ENTRIES, 32 * SUBCARRIERS)
    return array.T if math.prod(array.T.shape[1:]) in sample_sizes else array


def _variable(path: Path, names: tuple[str, ...], listed: dict[str, Any]) -> str:
    for name in names:
        if name in listed:
            return name
    wanted = " or ".join(name for name in names if name.startswith("H"))
    held = [name[:60] for name in sorted(listed)[:10]]
    raise DataError(
        f"{path} has no variable {wanted}",
        f"it holds {', '.join(held) or 'nothing'}",
        "give a COST2100 file such as DATA_Htestin.mat, or convert yours to .npz",
    )


def _check_size(path: Path, size: int, stored: int) -> None:
    """Refuse what would take more memory than a set of channels that is stored in so few bytes can need."""
    if size > _MAX_BYTES or size > max(stored, 4096) * _MAX_RATIO:
        raise DataError(
            f"{path} claims {size:,} bytes of data in {stored:,}",
            "that is no set of channels (or a zip bomb)",
            "export it again, in parts if it is really that large",
        )


def _optional(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ToolchainError(
            "A .mat file cannot be read", f"{module} is missing ({error})", "pip install 'edgecsi[data]'"
        ) from error
