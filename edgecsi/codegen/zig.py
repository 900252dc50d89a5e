"""The C compiler and linker: clang as shipped by the ziglang wheel, for every target without a cross toolchain."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgecsi import disk
from edgecsi.errors import ToolchainError


def zig_cc(
    arguments: Sequence[str | Path], *, triple: str = "", cwd: Path | None = None, timeout: float = 300
) -> None:
    """Run ``zig cc`` for `triple` (zig's form, e.g. ``aarch64-linux-gnu.2.28``; empty: this machine).

    Raises:
        ToolchainError: the compiler is missing, failed, or took longer than `timeout` seconds.
    """
    command = [sys.executable, "-m", "ziglang", "cc", *(["-target", triple] if triple else [])]
    command += [str(a) for a in arguments]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "NO_COLOR": "1", **caches()},
        )
    except FileNotFoundError as error:
        raise ToolchainError("the linker cannot be started", str(error), "run `edgecsi doctor`") from error
    except subprocess.TimeoutExpired as error:
        raise ToolchainError(
            f"the linker did not finish in {timeout:.0f} s",
            "zig cc hung or the machine is overloaded",
            "try again",
        ) from error
    if done.returncode == 0:
        return
    output = done.stderr.strip() or done.stdout.strip()
    if "No module named ziglang" in output:
        raise ToolchainError(
            "the linker is missing", "the package ziglang is not installed", "pip install ziglang"
        )
    if "No space left" in output or "NoSpaceLeft" in output:
        raise ToolchainError("linking failed: the disk is full", output.splitlines()[-1], "free some space")
    raise ToolchainError(
        f"compiling C for {triple or 'this machine'} failed", output[-2000:], "run `edgecsi doctor`"
    )


def caches() -> dict[str, str]:
    """zig keeps what it compiled (C libraries, our own programs) below our cache, not in the home folder, unless its own
    variables name another place."""
    names = [n for n in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR") if not os.environ.get(n)]
    return dict.fromkeys(names, str(disk.cache("zig"))) if names else {}
