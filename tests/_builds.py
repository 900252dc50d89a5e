"""Building real bundles in tests: where they can run, and what PyTorch says to the same inputs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgecsi import target as targets
from edgecsi.codegen.program import PlannedEntry
from edgecsi.lower import lower
from edgecsi.pipeline import BuildOptions, BuildResult, build

NETWORKS = Path(__file__).parent / "lower" / "networks.py"


def build_for(model: str, target: str, out: Path, **options: Any) -> BuildResult:
    """Build what this machine can check; otherwise skip (fail where CI=true)."""
    can_run(target)
    return build(BuildOptions(model, target, out=out, **options))


def can_run(name: str) -> None:
    """Skip the test if this machine cannot run what is compiled for the target; fail where CI=true."""
    target = targets.load(name)
    if not target.missing_on_this_cpu() or shutil.which(f"qemu-{target.arch}"):
        return
    message = f"qemu-{target.arch} is missing; install the Debian package qemu-user"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def pytorch(module: torch.nn.Module, x: NDArray[Any]) -> NDArray[Any]:
    """What PyTorch answers."""
    with torch.no_grad():
        y: NDArray[Any] = module(torch.from_numpy(np.asarray(x, np.float32))).numpy()
    return y


def lowered(module: torch.nn.Module, example: torch.Tensor, target: str = "x86") -> PlannedEntry:
    """The plan of a module, as the only entry of a library."""
    (entry,) = lower(module.eval(), (example,), "full", targets.load(target))
    return entry
