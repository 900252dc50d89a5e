"""Arrays from and to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecsi import disk, file_kinds
from edgecsi.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_npy(path: Path) -> NDArray[Any]:
    """The array of a ``.npy`` file of real numbers.

    Raises:
        DataError: no such file, no or a damaged ``.npy``, other objects than numbers, NaN or infinity.
    """
    import numpy as np

    try:
        # A memory map of a file shorter than its header claims fails before memory is taken.
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of several arrays")
    except (OSError, ValueError, EOFError, MemoryError) as error:
        why = file_kinds.why_unreadable(path, error)
        raise DataError(f"{path} cannot be read as .npy", why, "save one array with numpy.save") from error
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path} holds {array.dtype}", "real numbers are needed", "convert it to float32")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{path} holds NaN or infinity", "no network makes sense of these", "clean the data")
    return np.array(array)


def read_samples(path: Path, shape: Sequence[int]) -> NDArray[Any]:
    """Samples for an input of this shape, its first axis being the batch: from whatever ``eval`` takes.

    They lie in a ``.npy``, ``.npz`` or ``.mat``, as ``[N, ...]``, flattened, or a single sample.

    Raises:
        DataError: the file cannot be read, or its shape is another.
    """
    import numpy as np

    from edgecsi.channels import files

    sample = tuple(shape[1:])
    archive = path.suffix.lower() in (".npz", ".mat") or (not path.is_file() and "#" in path.name)
    array = files.load(path, shape=sample) if archive else read_npy(path)
    if array.shape[1:] == sample or array.ndim == len(shape) + 1:
        return array
    if array.shape == sample:
        return array[None]
    if array.ndim in (1, 2) and array.shape[-1] == np.prod(sample, dtype=np.int64):
        return array.reshape(-1, *sample)
    return array  # the device says what it takes


def write_npy(path: Path, array: NDArray[Any]) -> None:
    """Write an array, whole or not at all; errors as for :func:`edgecsi.disk.whole`."""
    import numpy as np

    with disk.whole(path) as beside, beside.open("wb") as stream:
        np.save(stream, array)
