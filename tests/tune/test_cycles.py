"""Cycle estimates: finding the hot loop, counting what it multiplies, asking llvm-mca."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgecsi import target as targets
from edgecsi.errors import ToolchainError
from edgecsi.kernels.variants import candidates
from edgecsi.lower.select_kernels import Choice
from edgecsi.ops.layout import Layout
from edgecsi.ops.operators import Dense
from edgecsi.tune import cycles
from edgecsi.tune.network import _hold_against_cycles
from edgecsi.tune.search import Found, Setting, Time
from edgecsi.tune.work import Work, tuned_layer, waits_for_memory

ASSEMBLY = """
kernel:
.Lfunc_begin0:
	mov	x8, #0
.LBB0_1:                                // outer
	fmla	v0.4s, v1.4s, v2.4s
	fmla	v0.4s, v1.4s, v3.4s
	fmla	v0.4s, v1.4s, v4.4s
	cbz	x9, .LBB0_3
.LBB0_2:                                // inner
	.loc	1 2 3
	ldr	q1, [x0], #16
	sdot	v0.4s, v1.16b, v2.4b[1]
.Ltmp5:
	smlal2	v3.8h, v1.16b, v2.16b
	subs	x9, x9, #1
	b.ne	.LBB0_2
.LBB0_3:
	tbnz	w16, #0, .LBB0_1
.LBB0_4:
	add	x1, x1, #1
	cbnz	x1, .LBB0_4
	ret
"""


def test_the_hot_loop_is_the_innermost_that_multiplies_most() -> None:
    body = cycles.hot_loop(ASSEMBLY)
    assert [line.split()[0] for line in body] == ["ldr", "sdot", "smlal2", "subs", "b.ne"]
    assert cycles.multiply_adds(body) == 16 + 8
    assert cycles.hot_loop("\tret\n") == []


@pytest.mark.parametrize(
    ("instruction", "macs"),
    [
        ("fmla\tv0.4s, v1.4s, v2.s[0]", 4),
        ("smull\tv0.8h, v1.8b, v2.8b", 8),
        ("umlal2 v0.4s, v1.8h, v2.8h", 4),
        ("sdot v0.2s, v1.8b, v2.8b", 8),
        ("mla v0.8h, v1.8h, v2.8h", 8),
        ("smull x0, w1, w2", 0),
        ("sadalp v0.4s, v1.8h", 0),
    ],
)
def test_multiply_adds_are_counted_by_lanes(instruction: str, macs: int) -> None:
    assert cycles.multiply_adds([instruction]) == macs


def test_without_the_tool_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ToolchainError, match="apt-get install llvm-16"):
        cycles.find_tool()


def test_what_the_tool_says_becomes_cycles_of_one_pass(tmp_path: Path) -> None:
    tool = tmp_path / "llvm-mca"
    tool.write_text(
        "#!/bin/sh\ngrep -q LBB && exit 1\necho 'Instructions: 500'; echo 'Total Cycles:      230'\n"
    )
    tool.chmod(0o755)
    assert cycles.analyse(str(tool), "cortex-a72", cycles.hot_loop(ASSEMBLY)) == 2.3
    tool.write_text("#!/bin/sh\necho 'no such instruction' >&2; exit 1\n")
    with pytest.raises(ToolchainError, match="no such instruction"):
        cycles.analyse(str(tool), "cortex-a72", ["ret"])


def test_the_tool_itself_estimates() -> None:
    try:
        tool = cycles.find_tool()
    except ToolchainError as error:
        pytest.skip(f"{error.why}: {error.fix}")
    assert 1 <= cycles.analyse(tool, "cortex-a72", cycles.hot_loop(ASSEMBLY)) < 10


def test_fewer_instructions_that_take_no_fewer_cycles_are_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    op = Dense(x=Layout((1, 48)), y=Layout((1, 40)), weight=np.ones((40, 48), np.float32))
    target = targets.load("rpi4")
    kernel, knobs, cost = candidates(op, target)[0][0]
    default, fewest, second = (Setting.of(kernel.name, {**knobs, "unroll": unroll}) for unroll in (3, 5, 7))
    knobs = dict(default.knobs)
    tried: dict[Setting, Time | None] = {default: Time(1.0), fewest: Time(0.8), second: Time(0.9)}
    for rates, best in (
        ((1.0, 0.9, 0.9), fewest),
        ((1.0, 1.5, 0.9), second),  # of few instructions the fewest cycles
        ((1.0, 1.5, 1.2), default),
        ((1.0, None, 1.05), second),
        ((None, 0.9, 0.9), fewest),  # no estimate of the default
    ):
        found = Found(fewest, Time(0.8), Time(1.0), tried)
        layer = Work(
            Choice(node=None, op=op, kernel=kernel, knobs=knobs, cost=cost, why=""), 0, ["fc"], found
        )
        answers = iter(rates)
        monkeypatch.setattr(cycles, "an_instruction", lambda *arguments, a=answers: next(a))
        _hold_against_cycles(layer, target)
        assert layer.found is not None
        assert layer.found.best == best
        assert tuned_layer(layer, target, True).default_cycles == rates[0]


def test_where_memory_is_waited_for_instructions_decide_nothing() -> None:
    target = targets.load("rpi4")
    for outputs, waits in ((40, False), (4096, True)):
        op = Dense(x=Layout((1, 48)), y=Layout((1, outputs)), weight=np.ones((outputs, 48), np.float32))
        kernel, knobs, _ = candidates(op, target)[0][0]
        assert waits_for_memory(Setting.of(kernel.name, knobs), op, target) is waits


def test_a_kernel_has_a_hot_loop() -> None:
    try:
        cycles.find_tool()
    except ToolchainError as error:
        pytest.skip(f"{error.why}: {error.fix}")
    op = Dense(x=Layout((1, 256)), y=Layout((1, 64)), weight=np.ones((64, 256), np.float32))
    kernel, knobs, _ = candidates(op, targets.load("rpi5"))[0][0]
    rate = cycles.an_instruction(kernel, op, targets.load("rpi5"), knobs)
    assert rate is not None
    assert 0.2 < rate < 3
