"""docs/how-to/add-a-kernel.md: its rows and files are put where it says, and its test passes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgecsi.kernels import variants
from edgecsi.kernels.dense.blocks import BlockDense
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense
from edgecsi.tune.harness import Case
from tests.kernels.common import check, normal

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/add-a-kernel.md").read_text(), re.S)
ROW, ALGORITHM, ITS_ROW, TEST = BLOCKS


def _module(name: str, code: str) -> ModuleType:
    module = ModuleType(name)
    exec(compile(code, name, "exec"), vars(module))
    return module


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of kernels with both rows of the page."""
    algorithm = _module("f32_dense_columns", ALGORITHM)
    names = {"BlockDense": BlockDense, "F32DenseColumns": algorithm.F32DenseColumns}
    rows = [eval(row.strip().rstrip(","), names) for row in (ROW, ITS_ROW)]
    monkeypatch.setattr(variants, "KERNELS", (*variants.KERNELS, *rows))
    variants.all_kernels.cache_clear()
    yield
    variants.all_kernels.cache_clear()


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("target", ["x86-64-v3", "rpi4"])
def test_the_algorithm_passes_the_test_of_the_page(target: str) -> None:
    _module("test_f32_dense_columns", TEST).test_it_computes_a_dense_layer(target)


@pytest.mark.usefixtures("table")
def test_the_row_is_a_kernel() -> None:
    rng = np.random.default_rng(0)
    weight = normal(rng, 70, 50) * np.repeat(rng.random((3, 50)) < 0.2, 32, 0)[:70]
    op = Dense(x=Layout((2, 50)), y=Layout((2, 70)), weight=weight, bias=normal(rng, 70))
    check([Case(variants.all_kernels()["f32_bsr32x1_dense"], op, [normal(rng, 2, 50)])], "x86-64-v3")


@pytest.mark.parametrize("code", [ALGORITHM, TEST])
def test_the_code_passes_the_linter(code: str) -> None:
    for command in (["check", "-q"], ["format", "-q", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", "edgecsi/kernels/dense/f32_new.py", "-"],
            input=code, text=True, capture_output=True, cwd=ROOT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_two_kernels_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "KERNELS", (*variants.KERNELS, variants.KERNELS[0]))
    with pytest.raises(ValueError, match="one name"):
        variants.all_kernels.__wrapped__()
