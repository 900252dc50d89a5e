"""The test set that ships with edgecsi: 1024 samples of the CDL-A/C mix and 1024 of the CDL-C reference.

It equals what the generator makes from ``cdl-ac:1024:seed=2026`` and ``cdl-c:1024:seed=2026``, rounded to 13
bits; no training uses that seed. The rounded values are the set: they are exact in float32, on every machine.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecsi.channels.generate import ChannelSpec, Progress, generate

SUBSETS = ("cdl-ac", "cdl-c")
SEED = 2026

_SAMPLES = 1024
_LEVELS = 1 << 13
_FILE = "cdl-test.npz"


def test_set(n: int | None = None, *, subset: str = "cdl-ac") -> NDArray[Any]:  # noqa: PT028
    """The first ``n`` samples (default: all 1024) of a subset, ``cdl-ac`` or ``cdl-c``.

    Returns:
        float32 ``[n, 2, 32, 32]`` in [0, 1], the caller's own copy.
    """
    if subset not in SUBSETS:
        raise ValueError(f"no subset {subset!r}; there are {', '.join(SUBSETS)}")
    a, c = _decoded()
    if subset == "cdl-c":
        return c[:n].copy()
    # the mix takes turns, as the generator does, and its C samples are the first of the reference
    mix = np.stack([a, c[: len(a)]], axis=1).reshape(-1, *a.shape[1:])
    return mix[:n].copy()


test_set.__test__ = False  # type: ignore[attr-defined]  # pytest, this is not a test


def write_test_set(path: Path, progress: Progress | None = None) -> None:
    """Make the shipped file anew; needs sionna and about 5 s."""
    a = generate(ChannelSpec("cdl-a", _SAMPLES // 2, SEED), cache=False, progress=progress)
    c = generate(ChannelSpec("cdl-c", _SAMPLES, SEED), cache=False, progress=progress)
    packed = np.round(np.concatenate([a, c]) * _LEVELS).astype(np.uint16)
    np.savez_compressed(path, channels=packed, levels=np.uint32(_LEVELS))


@cache
def _decoded() -> tuple[NDArray[Any], NDArray[Any]]:
    with (
        resources.files("edgecsi.channels").joinpath("data", _FILE).open("rb") as file,
        np.load(file) as packed,
    ):
        samples = packed["channels"].astype(np.float32) / np.float32(packed["levels"])
    return samples[: _SAMPLES // 2], samples[_SAMPLES // 2 :]
