"""Data from and to files: ``.npy``, ``.npz`` and ``.mat``, such as the COST2100 files of the CSI-feedback papers.

Most data are channels, but a network may take anything; then its own shape says what fits.

Nothing in a file is executed, and every size that a file states is checked against what the file can hold
before memory is taken.
"""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgecsi import disk, file_kinds
from edgecsi.channels.generate import SamplesDone, generate, is_spec
from edgecsi.channels.metrics import SUBCARRIERS
from edgecsi.channels.shipped import SUBSETS, test_set
from edgecsi.errors import DataError, Notice, ToolchainError

SAMPLE = (2, 32, 32)

_ENTRIES = math.prod(SAMPLE)
_MAX_BYTES = 16 << 30
_MAX_RATIO = 200  # real channels compress by less than 10; deflate's limit, a zip bomb, is 1032
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_NAMES = ("HT", "channels", "inputs")  # of an array among several
_MOST_ARRAYS = 100  # of a file that are looked at
_EXACT = 2**24
_SLACK = 1e-3  # beyond [0, 1]: 1.0000001 is rounding, no other convention


@dataclass(frozen=True)
class ChannelInfo:
    """What a set of channels looks like.

    ``std`` is the deviation of the entries from 0.5, or from 0 if they are not in [0, 1]; ``strongest_tap`` the share of
    a channel's energy in its strongest delay tap, the mean over samples.
    """

    samples: int
    minimum: float
    maximum: float
    std: float
    strongest_tap: float | None


def load(
    source: str | Path,
    *,
    shape: Sequence[int] | None = SAMPLE,
    variable: str | None = None,
    progress: SamplesDone | None = None,
) -> NDArray[Any]:
    """Inputs of a network from wherever DATA says.

    Args:
        source: a ``.npy``, ``.npz`` or ``.mat`` file, a generator spec such as ``cdl-c:1000:seed=7``, or
            ``test`` / ``test-cdl-c`` for the set that ships with edgecsi. ``FILE#NAME`` takes one array of several.
        shape: of one input of the network; None takes whatever there is.
        variable: name of the array in a file that holds several.
        progress: called with (done, wanted) while samples are generated.

    Returns:
        float32 ``[N, *shape]``, N ≥ 1; channels are ``[N, 2, 32, 32]`` (real/imaginary, angle, delay).

    Raises:
        DataError: the source is no such data.
        ToolchainError: a package of the ``[data]`` extra is missing.
    """
    text = os.fspath(source)
    generated = text == "test" or (text.startswith("test-") and text.removeprefix("test-") in SUBSETS)
    if (generated or is_spec(text)) and shape is not None and tuple(shape) != SAMPLE:
        raise DataError(
            f"the network takes inputs of shape {list(shape)}",
            f"{text} gives channels of shape {list(SAMPLE)}",
            "give a .npy, .npz or .mat file with inputs of the network's own shape",
        )
    if generated:
        return test_set(subset=text.removeprefix("test").removeprefix("-") or SUBSETS[0])
    if is_spec(text):
        return generate(text, progress=progress)
    path, names = _named(text, variable)
    return as_samples(_read_array(path, names, shape), str(path), shape)


def _named(source: str, variable: str | None) -> tuple[Path, tuple[str, ...]]:
    """The file and the names of its array that ``FILE``, ``FILE#NAME`` or a variable beside it mean."""
    path = Path(source)
    if variable is None and "#" in path.name and not path.is_file():
        source, _, variable = source.rpartition("#")
        path = Path(source)
    return path, _NAMES if variable is None else (variable,)


def read(path: Path) -> NDArray[Any]:
    """Channels from a ``.npy``, ``.npz`` or ``.mat`` file; returns and raises as :func:`load`."""
    return load(path)


def as_samples(array: NDArray[Any], name: str, shape: Sequence[int] | None = SAMPLE) -> NDArray[Any]:
    """Check an array and bring it to float32 ``[N, *shape]``.

    Args:
        array: ``[N, *shape]``, flat ``[N, …]`` or one sample without N, any real dtype.
        name: what to call it in an error.
        shape: of a sample; None leaves it as it is, but for flat channels.

    Raises:
        DataError: empty, wrong shape or dtype, NaN or infinity.
    """
    if array.dtype.kind == "c":
        raise DataError(
            f"{name}: the array holds complex numbers, {array.dtype} {list(array.shape)}",
            "networks take real ones: real and imaginary parts side by side",
            f"edgecsi data convert {name} --scale -o channels.npz",
        )
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name}: the array holds {array.dtype}", "expected numbers", "convert it to float32")
    if shape is None:
        sizes = array.shape[1:]
        shape = SAMPLE if math.prod(sizes) == _ENTRIES or array.shape == SAMPLE else sizes
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2 and array.size:
        largest = max(-int(array.min()), int(array.max()))
        if largest > _EXACT:
            raise DataError(
                f"{name}: the array holds integers up to {largest}",
                f"they are read as float32, which tells integers apart up to {_EXACT} only",
                "give smaller ones; edgecsi run takes larger ones from a .npy",
            )
    size = math.prod(shape)
    if array.shape in (tuple(shape), (size,)):
        array = array[None]
    if array.shape[1:] not in (tuple(shape), (size,)) or array.ndim < (2 if shape else 1):
        order = "; the order of a sample is real/imaginary, angle, delay" if tuple(shape) == SAMPLE else ""
        raise DataError(
            f"{name}: the array has the shape {list(array.shape)}",
            f"expected [N, {', '.join(map(str, shape))}]" + (f" or [N, {size}]" if len(shape) > 1 else ""),
            f"reshape it{order}",
        )
    if len(array) == 0:
        raise DataError(f"{name} holds no samples", "its first dimension is 0", "give at least one sample")
    # a copy, never the file's map
    samples = np.array(array, dtype=np.float32, order="C").reshape(-1, *shape)
    low, high = float(samples.min()), float(samples.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int(np.count_nonzero(~np.isfinite(samples)))
        raise DataError(
            f"{name}: {bad} entries are NaN or infinite",
            "they would spoil every figure",
            "drop the damaged samples",
        )
    if tuple(shape) == SAMPLE and not (low >= -_SLACK and high <= 1 + _SLACK):
        warnings.warn(
            Notice(
                f"{name}: values reach from {low:g} to {high:g}; networks of the zoo take channels in [0, 1], 0.5 meaning"
                " zero (edgecsi data convert --scale makes such)"
            ),
            stacklevel=2,
        )
    return samples


def scaled(array: NDArray[Any]) -> NDArray[Any]:
    """Channels as networks of the zoo take them: every sample divided by twice its largest entry, 0.5 added.

    Args:
        array: complex ``[N, …]``, whose real and imaginary parts become a second dimension of 2, or real ``[N, 2, …]``
            around zero.
    """
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], 1)
    peak = np.abs(array).reshape(len(array), -1).max(1).reshape(-1, *[1] * (array.ndim - 1))
    result: NDArray[Any] = (0.5 + array / np.where(peak > 0, 2 * peak, 1)).astype(np.float32)
    return result


def write(path: Path, samples: NDArray[Any]) -> None:
    """Write samples as ``.npz`` (compressed, array ``channels``) or ``.npy``, whole or not at all.

    Raises:
        DataError: the samples are none, or hold NaN; the name has another suffix.
        InputError, ToolchainError: writing failed, see :func:`edgecsi.disk.refusal`.
    """
    samples = as_samples(samples, "the samples to be written", None)
    if path.suffix not in (".npz", ".npy"):
        raise DataError(
            f"{path}: cannot write {path.suffix or 'a file without suffix'}",
            "channels are written as arrays of numpy",
            "use .npz or .npy",
        )
    with disk.whole(path) as beside, beside.open("wb") as file:
        if path.suffix == ".npz":
            np.savez_compressed(file, channels=samples)
        else:
            np.save(file, samples)


def describe(samples: NDArray[Any]) -> ChannelInfo:
    """Figures of a set ``[N, …]`` for ``edgecsi data info``."""
    from edgecsi.channels.metrics import centre

    power = np.square(samples.astype(np.float64) - centre(samples))
    share = None
    if samples.shape[1:] == SAMPLE:
        per_tap = power.sum(axis=(1, 2))
        total = per_tap.sum(axis=1)
        share = float((per_tap.max(axis=1) / np.where(total > 0, total, 1)).mean())
    return ChannelInfo(
        samples=len(samples),
        minimum=float(samples.min()),
        maximum=float(samples.max()),
        std=float(np.sqrt(power.mean())),
        strongest_tap=share,
    )


def read_raw(source: str | Path, variable: str | None = None, advice: str = "") -> NDArray[Any]:
    """The array of a file as it is, complex numbers too; errors as for :func:`load`.

    Args:
        source: the file, or ``FILE#NAME``.
        advice: what to do where there is no such variable, if that is not to name one.
    """
    path, names = _named(os.fspath(source), variable)
    try:
        return np.asarray(_read_array(path, names, None))
    except DataError as error:
        if advice and error.what.startswith(f"{path} has no variable"):
            raise DataError(error.what, error.why, advice) from None
        raise


def _read_array(path: Path, names: tuple[str, ...], shape: Sequence[int] | None) -> NDArray[Any]:
    """The array of a file; from a file of several, the first of ``names`` that is there, or the only one whose samples
    have this shape."""
    if not path.is_file():
        raise DataError(
            file_kinds.missing(path),
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
        return reader(path, names, shape)
    except (DataError, ToolchainError):
        raise
    # Other people's parsers meet strangers' files below: whatever they raise, the file is bad.
    except Exception as error:
        raise DataError(
            f"{path} cannot be read",
            file_kinds.why_unreadable(path, error),
            "it is damaged, cut short or of another format; export it again",
        ) from error


def _read_npy(path: Path, names: tuple[str, ...], shape: Sequence[int] | None) -> NDArray[Any]:
    # A memory map of a file shorter than its header claims fails before memory is taken.
    array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    return array


def _read_npz(path: Path, names: tuple[str, ...], shape: Sequence[int] | None) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        shapes: dict[str, Sequence[int]] = dict.fromkeys(members, ())
        if not any(name in members for name in names):
            for name, info in list(members.items())[:_MOST_ARRAYS]:
                with archive.open(info) as file:
                    shapes[name] = _npy_header(file)[0]
        name = _variable(path, names, shapes, shape)
        array = _read_member(path, archive, members[name])
        if names == _NAMES and set(members) == {name, "levels"}:  # the packed form of the shipped test set
            levels = _read_member(path, archive, members["levels"])
            if array.dtype.kind != "u" or levels.shape != () or not 0 < float(levels) < 2**32:
                raise DataError(
                    f"{path}: levels do not fit the array",
                    "packed channels are codes and the one number above 0 and below 2^32 that divides them",
                    "write the file again",
                )
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


def _read_mat(path: Path, names: tuple[str, ...], shape: Sequence[int] | None) -> NDArray[Any]:
    with path.open("rb") as file:
        start = file.read(520)
    # A v7.3 file is HDF5 behind a 512-byte MATLAB header; a bare HDF5 file is taken too.
    if _HDF5_MAGIC in (start[:8], start[512:520]):
        return _read_hdf5(path, names, shape)
    scipy_io = _optional("scipy.io")
    listed = {name: (shape, kind) for name, shape, kind in scipy_io.whosmat(path)}
    name = _variable(path, names, {name: found for name, (found, _) in listed.items()}, shape)
    size, kind = listed[name]
    widths = {"double": 8, "single": 4, "logical": 1}
    widths |= {f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)}
    if kind not in widths:
        raise DataError(f"{path}: {name} is of class {kind}", "expected numbers", "export a numeric matrix")
    _check_size(path, math.prod(size), path.stat().st_size)  # values may be stored in one byte each
    array: NDArray[Any] = scipy_io.loadmat(path, variable_names=[name])[name]
    return array


def _read_hdf5(path: Path, names: tuple[str, ...], shape: Sequence[int] | None) -> NDArray[Any]:
    h5py = _optional("h5py")
    with h5py.File(path, "r") as file:
        found = {
            key: file[key].shape[::-1]
            for key in list(file)[:_MOST_ARRAYS]
            if isinstance(file.get(key, getlink=True), h5py.HardLink) and isinstance(file[key], h5py.Dataset)
        }
        others = {key: () for key in file if key not in found and not key.startswith("#")}
        name = _variable(path, names, found | others, shape)
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise DataError(
                f"{path}: {name} lies in another file", "links are not followed", "export it whole"
            )
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
            raise DataError(
                f"{path}: {name} is not a plain array",
                "it is a folder, or its values lie in other files",
                "export a numeric matrix",
            )
        _check_size(path, dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size())
        array = np.asarray(dataset[()])
    if array.dtype.names is not None and set(array.dtype.names) == {"real", "imag"}:
        array = array["real"] + 1j * array["imag"]
    # MATLAB stores columns first, so HDF5 shows its dimensions in reverse; other writers do not.
    sample_sizes = (_ENTRIES, 32 * SUBCARRIERS) if shape is None else (math.prod(shape), 32 * SUBCARRIERS)
    return array.T if math.prod(array.T.shape[1:]) in sample_sizes else array


def _variable(
    path: Path, names: tuple[str, ...], shapes: Mapping[str, Sequence[int]], shape: Sequence[int] | None
) -> str:
    """Which array of a file to take: one of these names, or the only one that could be meant.

    Args:
        shapes: of the arrays, by name. shape: of a sample, if it is known.
    """
    for name in names:
        if name in shapes:
            return name
    if names == _NAMES:
        size = None if shape is None else math.prod(shape)
        possible = [name for name, found in shapes.items() if size is None or math.prod(found[1:]) == size]
        if len(possible) == 1:
            return possible[0]
    listed = ", ".join(f"{name[:60]} {list(found)}" for name, found in sorted(shapes.items())[:10])
    raise DataError(
        f"{path} has no variable {' or '.join(names[:2])}",
        f"it holds {listed or 'nothing'}",
        f"name one: {path}#NAME, or --variable NAME of edgecsi data convert",
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
