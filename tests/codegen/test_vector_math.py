"""The polynomials against libm over all of float32, as vectors and behind TVM's own operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edgecsi.codegen import vector_math
from edgecsi.codegen.compile import compile_module
from edgecsi.kernels.base import Cost, Kernel, Knobs
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Elementwise
from edgecsi.target import Target, load
from edgecsi.tune.harness import Case, run_cases
from tests.kernels.common import available, on_targets

FUNCTIONS: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
    "exp": np.exp,
    "sigmoid": lambda x: np.where(
        x > 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))
    ),
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
}
LANES = {"x86_64": 16, "aarch64": 4}


@dataclass(frozen=True)
class Unary(Kernel):
    """The function of this name on vectors, or TVM's operator of that name in a vectorised loop."""

    op = Elementwise
    tvm_own: bool

    def refuses(self, op: Elementwise, target: Target) -> str:
        return ""

    def knobs(self, op: Elementwise, target: Target) -> Knobs:
        return {"lanes": LANES[target.arch]}

    def cost(self, op: Elementwise, target: Target, knobs: Knobs) -> Cost:
        return Cost(0.0, 0, 0)

    def emit(self, op: Elementwise, target: Target, knobs: Knobs) -> Any:
        from tvm import tirx
        from tvm.tirx.script import builder as T

        from edgecsi.kernels import emit as e

        lanes = knobs["lanes"]
        with e.function(op) as (done, (x, y)), e.serial(op.x.size // lanes) as i:
            if self.tvm_own:
                with T.vectorized(lanes) as v:
                    T.buffer_store(y, getattr(tirx, self.name)(x[i * lanes + v]), [i * lanes + v])
            else:
                e.store(y, i * lanes, getattr(vector_math, self.name)(e.load(x, i * lanes, lanes)))
        return done.done()


def values() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Floats of every size and sign, the interesting range densely, and what has no size."""
    rng = np.random.default_rng(0)
    every = rng.integers(0, 2**32, 4096, dtype=np.uint32).view(np.float32)
    edges = np.array(
        [0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 88.72, 88.73, -87.34, -103.9, -104.1, 3e38, -3e38],
        np.float32,
    )
    near = np.concatenate([rng.uniform(-s, s, 4096) for s in (0.5, 1.5, 10, 110)]).astype(np.float32)
    result = np.concatenate([edges, every, near])
    return result[: result.size // 16 * 16]


def ulps(got: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = exact.astype(np.float32)
        step = np.spacing(np.abs(nearest)).astype(np.float64)
        off = np.abs(got.astype(np.float64) - exact) / step
    return np.where(
        np.isfinite(nearest) & np.isfinite(got), off, np.where(nearest.view("i4") == got.view("i4"), 0, 1e9)
    )


@on_targets()
def test_functions_are_right_to_three_last_places(target: str) -> None:
    board = available(target)
    x = values()
    op = Elementwise(x=Layout((1, x.size)), y=Layout((1, x.size)))
    kernels = [Unary(f, False) for f in FUNCTIONS] + [
        Unary(f, True) for f in ("exp", "tanh", "sigmoid", "erf")
    ]
    cases = [Case(k, op, [x[None]]) for k in kernels]
    for kernel, (_, got, _) in zip(kernels, run_cases(cases, board), strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            exact = FUNCTIONS[kernel.name](x.astype(np.float64))
        assert (np.isnan(got[0]) == np.isnan(x)).all(), kernel.name
        known = ~np.isnan(x)
        off = ulps(got[0][known], exact[known])
        worst = x[known][off.argmax()]
        assert off.max() <= 3, f"{kernel.name} of {worst} is {off.max():.3g} ulp off on {target}"


@pytest.mark.parametrize("name", ["host", "rpi4"])
def test_no_call_of_libm_remains(name: str) -> None:
    op = Elementwise(x=Layout((1, 64)), y=Layout((1, 64)))
    board = load(name)
    functions = {f: Unary(f, True).emit(op, board, {"lanes": 4}) for f in ("exp", "tanh", "sigmoid", "erf")}
    assembly = compile_module(functions, board).inspect_source("asm")
    assert not [line for line in assembly.splitlines() if line.split()[:1] in (["bl"], ["callq"], ["call"])]
