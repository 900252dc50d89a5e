"""``golden.npz``: a few inputs and the outputs PyTorch gave for them, to prove a library on any machine.

One member per tensor, ``<entry>.<tensor>``, float32 or int32 ``[samples, *shape]``, stored without compression so that
a few lines of C can read it too (``example/main.c`` does).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.bundle.manifest import Entry
from edgecsi.bundle.read import Bundle
from edgecsi.errors import BundleError

GOLDEN = "golden.npz"
CODES = {"float32": "<f4", "int32": "<i4"}

Arrays = Mapping[str, NDArray[Any]]


def golden_npz(entries: Mapping[str, Entry], values: Mapping[str, Arrays]) -> bytes:
    """The bytes of ``golden.npz``; the same values give the same bytes.

    Args:
        entries: the bundle's entries.
        values: per entry, every input and output by its tensor's name, float32 ``[samples, *shape]``.

    Raises:
        ValueError: a tensor is missing or has another shape.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for entry_name, entry in sorted(entries.items()):
            for tensor in (*entry.inputs, *entry.outputs):
                array = np.asarray(values[entry_name][tensor.name], CODES[tensor.dtype], order="C")
                if array.shape[1:] != tensor.shape:
                    raise ValueError(
                        f"{entry_name}.{tensor.name} has shape {array.shape}, not [n, *{tensor.shape}]"
                    )
                member = io.BytesIO()
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
                # ZipInfo's own date, 1980-01-01, keeps the bytes reproducible.
                archive.writestr(zipfile.ZipInfo(f"{entry_name}.{tensor.name}.npy"), member.getvalue())
    return buffer.getvalue()


def read_golden(bundle: Bundle, entry: str) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Inputs and expected outputs of an entry, each ``[samples, *shape]`` of its tensor's type.

    Raises:
        BundleError: the bundle has no golden values for the entry, or broken ones.
    """
    described = bundle.entry(entry)
    path = bundle.path / GOLDEN
    try:
        with zipfile.ZipFile(path) as archive:
            inputs = [_member(archive, f"{entry}.{tensor.name}.npy") for tensor in described.inputs]
            outputs = [_member(archive, f"{entry}.{tensor.name}.npy") for tensor in described.outputs]
    # The readers of zip archives and arrays raise whatever a broken one makes them stumble over.
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise BundleError(f"{path} has no values for {entry}", why, "build the bundle again") from None
    samples = inputs[0].shape[:1]
    for array, tensor in zip([*inputs, *outputs], [*described.inputs, *described.outputs], strict=True):
        if array.dtype != np.dtype(tensor.dtype) or array.shape != samples + tensor.shape:
            raise BundleError(
                f"{path}: {entry}.{tensor.name} does not fit the entry",
                f"{array.dtype} {array.shape} instead of {tensor.dtype} {('samples', *tensor.shape)}",
                "build the bundle again",
            )
    return inputs, outputs


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > info.compress_size:
        raise ValueError(f"{name} is compressed")
    with archive.open(info) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{name} is not as it was written")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        return np.frombuffer(bytearray(stream.read()), dtype).reshape(shape)  # writable, as PyTorch wants it
