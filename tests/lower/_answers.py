"""What a lowered module answers, without the bundle around it, and how far that is from PyTorch."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgecsi import target as targets
from edgecsi.codegen.library import build_library, gather
from edgecsi.codegen.program import PlannedEntry
from edgecsi.lower import lower
from edgecsi.lower.export import tensors_of

TOLERANCE = 1e-5  # of the largest output


class Answers:
    """A module compiled for this machine."""

    def __init__(
        self, module: torch.nn.Module, example: Sequence[torch.Tensor], target: str = "host"
    ) -> None:
        self.module = module
        made_for = targets.load(target)
        self.entry: PlannedEntry = lower(module, example, "full", made_for)[0]
        library = build_library("net", [self.entry], gather([self.entry]), b"{}", made_for)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.so"
            path.write_bytes(library)
            self.function = ctypes.CDLL(str(path)).net_full

    def answers(self, *inputs: torch.Tensor) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """What the library answers and what PyTorch does, output by output."""
        with torch.no_grad():
            wanted = [t.numpy() for t in tensors_of(self.module(*(x.clone() for x in inputs)))]
        wanted = [w.astype(np.float32 if w.dtype.kind == "f" else np.int32) for w in wanted]
        given = [np.ascontiguousarray(x.numpy()) for x in inputs]
        given = [x.astype(np.float32 if x.dtype.kind == "f" else np.int32) for x in given]
        found = [np.full(w.shape, 99, w.dtype) for w in wanted]
        assert self.function(*(ctypes.c_void_p(a.ctypes.data) for a in [*given, *found])) == 0
        return list(zip(found, wanted, strict=True))

    def wrong(self, *inputs: torch.Tensor) -> dict[int, float]:
        """The outputs that are further from PyTorch than allowed, by their number; infinite where NaN or infinity
        stand in other places."""
        apart = {}
        for number, (y, expected) in enumerate(self.answers(*inputs)):
            finite = np.isfinite(expected)
            same = np.array_equal(y[~finite], expected[~finite], equal_nan=True)
            largest = float(np.abs(expected[finite]).max(initial=0)) or 1.0
            off = float(np.abs(y[finite].astype(np.float64) - expected[finite]).max(initial=0)) / largest
            if not same or not off <= TOLERANCE:
                apart[number] = off if same else float("inf")
        return apart
