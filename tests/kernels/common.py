"""What all kernel tests share: where they run, and what counts as equal."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgecsi.kernels.base import Kernel
from edgecsi.kernels.variants import grid
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Op
from edgecsi.target import Target, load
from edgecsi.tune.harness import Case
from tests._cpu import skip_without
from tests._every_case import in_turns
from tests.kernels.guarded import run_guarded

X86 = ("x86-64-v3", "x86-64-v4", "host")
PI = ("rpi4", "rpi5")
PAIRS = {"x86-64-v4": 0, "host": 1, "rpi4": 0, "rpi5": 1}
"""Targets with the same fp32 instructions, and which of two turns each has."""


def on_targets(*names: str) -> pytest.MarkDecorator:
    """Run the test with argument `target` for each of the named targets, x86 and Pi if none is named."""
    return pytest.mark.parametrize("target", names or (*X86, *PI))


def available(name: str) -> Target:
    """The target, if its code runs here natively or under QEMU; else the test is skipped (fails in CI)."""
    target = load(name)
    missing = target.missing_on_this_cpu()
    if not missing:
        return target
    if not target.emulate:
        skip_without(target)
    if shutil.which(f"qemu-{target.arch}") is None:
        message = f"qemu-{target.arch} is missing; install the Debian package qemu-user"
        if os.environ.get("CI") == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    return target


def check(
    cases: Sequence[Case] | Callable[[Target], Sequence[Case]],
    target: str,
    tolerance: float = 1e-5,
    in_pairs: bool = False,
) -> None:
    """Build all cases, run them between guard pages, compare with the operators' references.

    Codes must be equal, floats agree to `tolerance` of the largest output; the halo must be written. A kernel
    must not refuse what a test asks of it. `in_pairs`: of two targets in `PAIRS`, each tries every second case.
    """
    board = available(target)
    listed = cases(board) if callable(cases) else cases
    listed = in_turns(listed, PAIRS[target]) if in_pairs and target in PAIRS else listed
    assert listed, f"nothing to check on {target}"
    for case in listed:
        assert case.kernel.refuses(case.op, board) == "", case.op
    listed = [*listed, *with_other_knobs(listed, board)]
    try:
        outputs = run_guarded(listed, board)
    except AssertionError as error:
        number, _, found = str(error).partition(" ")
        which = describe(listed[int(number)]) if number.isdecimal() else ""
        raise AssertionError(f"{target}: {found or number}: {which}") from None
    for number, (case, memory) in enumerate(zip(listed, outputs, strict=True)):
        got, want = case.op.y.read(memory), case.op.reference(*case.inputs)
        where = f"case {number} on {target}: {describe(case)}"
        if case.op.y.dtype == "float32":
            limit = tolerance * max(float(np.abs(want).max()), 1e-30)
            assert np.isfinite(got).all(), where
            assert np.abs(got - want).max() <= limit, (
                f"{where}: off by {np.abs(got - want).max():.2g}, allowed {limit:.2g}"
            )
        else:
            assert (got == want).all(), f"{where}: {(got != want).sum()} codes differ"
        assert (outside(memory, case.op.y) == outside(case.op.y.store(want), case.op.y)).all(), (
            f"{where}: halo"
        )


OTHERS = 2
"""Settings that `check` tries beside those asked for."""


def with_other_knobs(cases: Sequence[Case], board: Target) -> list[Case]:
    """Some of the cases with knobs drawn from their kernels' spaces: whatever a tuning record names must be right."""
    rng, found = np.random.default_rng(len(cases)), []
    for number in rng.permutation(len(cases)):
        case = cases[number]
        space = {} if case.knobs is not None else grid(case.kernel, case.op, board)
        if all(len(values) == 1 for values in space.values()):
            continue
        knobs = {knob: int(rng.choice(values)) for knob, values in space.items()}
        try:
            case.kernel.emit(case.op, board, knobs)
        except ValueError:  # knobs that do not fit each other
            continue
        found.append(replace(case, knobs=knobs))
        if len(found) == OTHERS:
            break
    return found


def outside(memory: np.ndarray[Any, Any], layout: Layout) -> np.ndarray[Any, Any]:
    """The memory with the tensor's own elements blanked: its halo, when samples follow each other."""
    blank = memory.copy()
    # The last group's missing channels hold anything.
    full = (layout.shape[0], layout.channels, *layout.shape[2:]) if len(layout.shape) == 4 else layout.shape
    blank[replace(layout, shape=full)._index()] = 0
    if layout.batch_stride is not None:
        # Between samples lies another tensor.
        return blank[:0]
    return blank


def describe(case: Case) -> str:
    op = case.op
    shown = {
        k: v for k, v in vars(op).items() if not isinstance(v, np.ndarray) and k not in ("name", "epilogue")
    }
    shapes = {k: v.shape for k, v in vars(op).items() if isinstance(v, np.ndarray)}
    return f"{case.kernel.name} {shown} {shapes} {[s.op for s in op.epilogue]} {case.knobs}"


def image(
    rng: np.random.Generator, *shape: int, halo: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> tuple[Layout, np.ndarray[Any, np.dtype[np.float32]]]:
    """A float32 tensor of random values and its layout."""
    return Layout(shape, halo=halo), normal(rng, *shape)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random float32 values."""
    return rng.standard_normal(shape).astype(np.float32)


def cases_of_any_knobs(
    rng: np.random.Generator, kernel: Kernel, op: Op, target: str, wanted: int
) -> list[Case]:
    """So many cases of an operator with one input, of knobs drawn from all that fit."""
    board = load(target)
    space = kernel.space(op, board)
    combinations = [dict(zip(space, some, strict=True)) for some in itertools.product(*space.values())]
    cases: list[Case] = []
    for index in rng.permutation(len(combinations)):
        try:
            kernel.emit(op, board, combinations[index])
        except ValueError:
            continue  # does not fit
        cases.append(Case(kernel, op, [normal(rng, *op.inputs[0].shape)], combinations[index]))
        if len(cases) == wanted:
            return cases
    raise AssertionError(f"only {len(cases)} knobs of {kernel.name} fit")
