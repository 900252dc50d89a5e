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
        shapes: of an example of every input, by name. Inputs with the first one's batch have samples; others (a scalar,
            a mask) are the same for all.

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
    first = next(iter(shapes))
    if not shapes[first]:
        raise DataError(
            f"{path}: nothing says how many samples there are",
            f"the network's first input, {first}, is one number",
            "give forward an input that has samples first",
        )
    arrays: list[NDArray[Any]] = []
    for name, shape in shapes.items():
        array = files.read_raw(path, name, f"the network takes {wanted}")
        if has_samples(shape, shapes):
            if len(shape) == 1 and array.ndim == 1:  # one number a sample
                array = array[:, None]
            found = files.as_samples(array, f"{path}#{name}", shape[1:] or (1,))
            arrays.append(found.reshape(-1, *shape[1:]))
        elif array.shape == tuple(shape):
            arrays.append(files.as_samples(array[None], f"{path}#{name}", shape).reshape(shape))
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


def has_samples(shape: Sequence[int], shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether an input has a sample axis: that of the first input."""
    first = next(iter(shapes.values()))
    return bool(shape) and bool(first) and shape[0] == first[0]


def _listed(shape: Sequence[int], shapes: Mapping[str, Sequence[int]]) -> str:
    return f"[{', '.join(['N', *map(str, shape[1:])])}]" if has_samples(shape, shapes) else str(list(shape))
