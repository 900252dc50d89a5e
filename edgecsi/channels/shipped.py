"""The test set that ships with edgecsi: 1024 UMi drops, and 1024 samples of the CDL-C reference.

It equals what the generator makes from ``umi:1024:seed=2026`` and ``cdl-c:1024:seed=2026``, rounded to 13 bits
(`write_test_set`); no training uses that seed. The rounded values are the set: they are
exact in float32, on every machine.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.channels.generate import ChannelSpec, generate

SUBSETS = ("umi", "cdl-c")
SEED = 2026

_SAMPLES = 1024
_LEVELS = 1 << 13
_FILE = "test.npz"


def test_set(n: int | None = None, *, subset: str = SUBSETS[0]) -> NDArray[Any]:  # noqa: PT028
    """The first ``n`` samples (default: all 1024) of a subset, ``umi`` or ``cdl-c``.

    Returns:
        float32 ``[n, 2, 32, 32]`` in [0, 1], the caller's own copy.
    """
    if subset not in SUBSETS:
        raise ValueError(f"no subset {subset!r}; there are {', '.join(SUBSETS)}")
    return _decoded()[subset][:n].copy()


test_set.__test__ = False  # type: ignore[attr-defined]  # pytest, this is not a test


def write_test_set(path: Path) -> None:
    """Make the shipped file anew; needs sionna and about 5 s."""
    made = {subset: generate(ChannelSpec(subset, _SAMPLES, SEED), cache=False) for subset in SUBSETS}
    packed = {subset: np.round(samples * _LEVELS).astype(np.uint16) for subset, samples in made.items()}
    np.savez_compressed(path, allow_pickle=False, levels=np.uint32(_LEVELS), **packed)


@cache
def _decoded() -> dict[str, NDArray[Any]]:
    with (
        resources.files("edgecsi.channels").joinpath("data", _FILE).open("rb") as file,
        np.load(file) as packed,
    ):
        return {
            subset: packed[subset].astype(np.float32) / np.float32(packed["levels"]) for subset in SUBSETS
        }
