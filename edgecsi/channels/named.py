"""Data of networks that take several inputs: arrays by the inputs' names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgecsi.channels import files
from edgecsi.errors import DataError


def load_named(source: str | Path, shapes: Mapping[str, Sequence[int]]) -> list[NDArray[Any]]:
    """The inputs of a network from a ``.npz`` or ``.mat`` file that has an array for each, under its name.

    Args:
        shapes: of an example of every input, by name. Inputs with the batch of the first one that has axes have samples;
            others (a scalar, a mask) are the same for all. If all are single numbers, each has one for every sample.

    Returns:
        float32, in the order of `shapes`: of inputs with samples ``[N, *shape[1:]]``, of others ``[*shape]``.

    Raises:
        DataError: a name is missing, or arrays do not fit; all names and shapes are listed.
    """
    path = Path(source)
    wanted = ", ".join(f"{name} {_listed(shape, shapes)}" for name, shape in shapes.items())
    if path.suffix.lower() not in (".npz", ".mat"):
        raise DataError(
            f"the network takes {len(shapes)} inputs, {', '.join(shapes)}",
            f"{os.fspath(source)} gives one array",
            f"give a .npz with an array for each, by name: {wanted}",
        )
    arrays: list[NDArray[Any]] = []
    for name, shape in shapes.items():
        array = files.read_raw(path, name, f"the network takes {wanted}")
        if has_samples(shape, shapes):
            if len(shape) < 2 and array.size == max(array.shape, default=0):  # one number a sample
                array = array.reshape(-1, 1)  # MATLAB's have two axes
            found = files.as_samples(array, f"{path}#{name}", shape[1:] or (1,))
            arrays.append(found.reshape(-1, *shape[1:]))
        elif _but_ones(array.shape) == _but_ones(shape):
            arrays.append(files.as_samples(array.reshape(1, *shape), f"{path}#{name}", shape).reshape(shape))
        else:
            raise DataError(
                f"{path}#{name}: the array has the shape {list(array.shape)}",
                f"one of shape {list(shape)} is needed, the same for all samples",
                f"the network takes {wanted}",
            )
    counts = {
        name: len(array)
        for (name, shape), array in zip(shapes.items(), arrays, strict=True)
        if has_samples(shape, shapes)
    }
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{path}: the inputs hold different numbers of samples",
            ", ".join(f"{name} {count}" for name, count in counts.items()),
            "give equally many",
        )
    return arrays


def samples_of(shapes: Mapping[str, Sequence[int]]) -> int:
    """How many samples an example has: as the first input that has axes says."""
    return next((shape[0] for shape in shapes.values() if shape), 1)


def has_samples(shape: Sequence[int], shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether an input has a sample axis."""
    return shape[0] == samples_of(shapes) if shape else not any(shapes.values())


def _but_ones(shape: Sequence[int]) -> list[int]:
    return [n for n in shape if n != 1]


def _listed(shape: Sequence[int], shapes: Mapping[str, Sequence[int]]) -> str:
    return f"[{', '.join(['N', *map(str, shape[1:])])}]" if has_samples(shape, shapes) else str(list(shape))
