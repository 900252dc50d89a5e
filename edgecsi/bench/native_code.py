"""Small C programs of our own that measure what Python cannot, built for this CPU when first needed."""

from __future__ import annotations

import hashlib
import subprocess
from importlib import resources
from pathlib import Path

from edgecsi import cpu, disk
from edgecsi.codegen.zig import zig_cc
from edgecsi.errors import ToolchainError
from edgecsi.target import Target


def built(source: str, target: Target | None = None) -> Path:
    """Compiles ``edgecsi/bench/native/<source>`` with ``-O3``; kept in the user's cache.

    Args:
        source: the file's name.
        target: for which CPU; for this exact one by default.

    Raises:
        ToolchainError: the compiler is missing or failed.
    """
    text = (resources.files("edgecsi.bench") / "native" / source).read_bytes()
    which = cpu.llvm_name() if target is None else f"{target.triple}.{target.glibc} {target.zig_cpu}"
    key = hashlib.sha256(text + which.encode()).hexdigest()
    binary = disk.cache("bench", runs=True) / f"{Path(source).stem}-{key[:16]}"
    if not binary.exists():
        mcpu, triple = (
            ("native", "") if target is None else (target.zig_cpu, f"{target.triple}.{target.glibc}")
        )
        with disk.scratch() as folder, disk.whole(binary) as beside:
            (folder / source).write_bytes(text)
            zig_cc(["-O3", f"-mcpu={mcpu}", source, "-o", beside], triple=triple, cwd=folder)
    return binary


def program_output(source: str) -> str:
    """Builds one of the programs and runs it; what it printed.

    Raises:
        ToolchainError: it cannot be built, or did not run to its end.
    """
    binary = built(source)
    try:
        return subprocess.run([binary], capture_output=True, text=True, timeout=120, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolchainError(
            f"the measuring program {source} failed", str(error), "run `edgecsi doctor`"
        ) from error
