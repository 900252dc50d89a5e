"""Cycle estimates: finding the hot loop, counting what it multiplies, asking llvm-mca."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgecsi.errors import ToolchainError
from edgecsi.results import cycles

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
