"""A fault at every system call: build, compress, train and write data on a disk that fails, and die there.

`faults.c` is preloaded and counts the calls on files below one folder, where output, cache and temporary files lie. Each
call is then made to fail in every way it can (no space, an I/O error, no permission, interrupted by a signal), and the
process to be killed in its place, one a run. Whatever happens: no traceback, the previous output or the new one is
there, whole; an interrupted call changes nothing; and after a kill the same command works.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecsi.codegen.zig import zig_cc

KILL = -1
NAMES = {
    errno.ENOSPC: "ENOSPC", errno.EIO: "EIO", errno.EACCES: "EACCES", errno.EINTR: "EINTR", KILL: "kill",
}  # fmt: skip
CALLS = {
    "c": "create", "o": "open", "r": "read", "w": "write", "s": "fsync", "l": "flock", "t": "truncate", "x": "close",
    "m": "mkdir", "n": "rename", "u": "unlink",
}  # fmt: skip
_FAILS = {
    "c": (errno.ENOSPC, errno.EIO, errno.EACCES, KILL), "o": (errno.EIO, errno.EACCES, KILL),
    "r": (errno.EIO, errno.EINTR, KILL), "w": (errno.ENOSPC, errno.EIO, errno.EINTR, KILL), "s": (errno.EIO, KILL),
    "l": (errno.EINTR, KILL), "t": (errno.ENOSPC, KILL), "x": (errno.EIO, KILL),
    "m": (errno.ENOSPC, errno.EACCES, KILL), "n": (errno.ENOSPC, errno.EIO, errno.EACCES, KILL),
    "u": (errno.EIO, errno.EACCES, KILL),
}  # fmt: skip
"""How each kind of call can fail."""

SECONDS = 900  # machines are busy; what hangs hangs for ever
NETWORK = """
import torch

def first():
    torch.manual_seed(1)
    return torch.nn.Linear(2048, 4), torch.zeros(1, 2048)

def second():
    torch.manual_seed(2)
    return torch.nn.Linear(2048, 4), torch.zeros(1, 2048)
"""
RECIPE = '[[steps]]\ndo = "prune"\npattern = "unstructured"\nsparsity = {sparsity}\nepochs = 2\n'


@dataclass(frozen=True)
class Work:
    """Something edgecsi does.

    Attributes:
        name: of it. arguments: of the command line, for an output folder; `old`: of what stood there before.
        output: name of the output below that folder. whole: reads it, raising unless it is whole.
    """

    name: str
    old: Callable[[Path], list[str]]
    arguments: Callable[[Path], list[str]]
    output: str
    whole: Callable[[Path], object]


def works(inputs: Path) -> list[Work]:
    """Everything that is tried, on the files in `inputs`."""

    def command(output: str, *words: str) -> Callable[[Path], list[str]]:
        return lambda out: [*words, "-o", str(out / output)]

    def build(factory: str) -> Callable[[Path], list[str]]:
        return command("net", "build", f"{inputs / 'net.py'}:{factory}", "--target", "host")

    def convert(source: str, to: str) -> Callable[[Path], list[str]]:
        return command(to, "data", "convert", str(inputs / source))

    data = ["--data", str(inputs / "a.npy")]

    def compress(recipe: str) -> Callable[[Path], list[str]]:
        options = ["--recipe", str(inputs / f"{recipe}.toml"), "--accept-loss", *data]
        return command("small.safetensors", "compress", "csinet-cr16", *options)

    def train(seed: int) -> Callable[[Path], list[str]]:
        options = ["--epochs", "1", "--threads", "1", "--seed", str(seed), *data]
        return command("trained.safetensors", "train", "csinet-cr64", *options)

    def read_bundle(path: Path) -> object:
        from edgecsi.bundle import read_bundle

        return read_bundle(path)

    def read_channels(path: Path) -> object:
        from edgecsi.channels import files

        return files.read(path)

    def read_weights(path: Path) -> object:
        from edgecsi.models.load import load_model

        return load_model(str(path))

    return [
        Work("write channels", convert("a.npy", "x.npz"), convert("b.npy", "x.npz"), "x.npz", read_channels),
        Work("write an array", convert("a.npy", "x.npy"), convert("b.npy", "x.npy"), "x.npy", read_channels),
        Work(
            "compress",
            compress("half"),
            compress("most"),
            "small.safetensors",
            read_weights,
        ),
        Work("train", train(1), train(2), "trained.safetensors", read_weights),
        Work("build", build("first"), build("second"), "net", read_bundle),
    ]


def inject(
    only: str = "",
    every: int = 1,
    say: Callable[[str], None] = lambda text: None,
    save: Callable[[dict[str, dict[str, Any]]], None] = lambda found: None,
) -> dict[str, dict[str, Any]]:
    """Try every point, in a process that has `faults.c` preloaded.

    Args:
        only: a part of the names of works. every: take each n-th call only. say: called with lines for the user.
        save: called after every point with what is there so far.

    Returns:
        per work: ``calls`` by kind, ``points`` by fault, ``outcomes``, ``findings``.
    """
    with tempfile.TemporaryDirectory(prefix="edgecsi-faults-") as name:
        shim = Path(name) / "faults.so"
        zig_cc(["-shared", "-fPIC", "-O1", Path(__file__).with_name("faults.c"), "-ldl", "-o", shim])
        environment = {
            **os.environ,
            "LD_PRELOAD": str(shim),
            "OMP_NUM_THREADS": "1",
            "EDGECSI_CACHE": f"{name}/cache",
        }
        command = [sys.executable, "-m", __name__, name, str(shim), only, str(every)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            found: dict[str, dict[str, Any]] = {}
            for line in process.stdout:
                if line.startswith("{"):
                    found |= json.loads(line)
                    save(found)
                else:
                    say(line.rstrip())
        if process.returncode:
            raise RuntimeError(f"the process with faults.c ended with {process.returncode}")
    return found


def _serve(folder: Path, shim: str, only: str, every: int) -> None:
    """In the preloaded process: everything is imported once, then each point is a fork of it."""
    import torch

    torch.set_num_threads(1)
    inputs = folder / "inputs"
    inputs.mkdir()
    numbers = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(inputs / f"{name}.npy", numbers.random((40, 2, 32, 32), np.float32))
    (inputs / "net.py").write_text(NETWORK)
    for name, sparsity in (("half", 0.5), ("most", 0.75)):
        (inputs / f"{name}.toml").write_text(RECIPE.format(sparsity=sparsity))
    for name in (
        "ZIG_GLOBAL_CACHE_DIR",
        "ZIG_LOCAL_CACHE_DIR",
    ):  # each run has a cache of its own, but not for this
        os.environ.setdefault(name, str(folder / "zig"))
    library = ctypes.CDLL(shim)
    for work in works(inputs):
        if only in work.name:
            for found in _all_points(work, folder, library, every):
                print(json.dumps({work.name: found}), flush=True)


def _all_points(work: Work, folder: Path, library: ctypes.CDLL, every: int) -> Iterator[dict[str, Any]]:
    before = folder / "before"
    shutil.rmtree(before, ignore_errors=True)
    before.mkdir()
    code, errors = _run(work.old(before))  # in this process: what is imported late is imported
    assert code == 0, errors
    calls = _count(work, folder, before, library)
    kinds = Counter(CALLS[letter] for letter in calls)
    faults: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    findings: dict[str, str] = {}
    for at in range(0, len(calls), every):
        for fault in _FAILS[calls[at]]:
            faults[NAMES[fault]] += 1
            outcome, problem = _one(work, folder, before, library, at, fault, calls[at])
            outcomes[outcome] += 1
            if problem:
                where = f"{NAMES[fault]} at {CALLS[calls[at]]}, call {at} of {len(calls)}"
                findings.setdefault(f"{work.name}: {problem}", where)
                print(f"FOUND {work.name}: {problem} ({where})", flush=True)
            yield {
                "calls": dict(kinds),
                "points": dict(faults),
                "outcomes": dict(outcomes),
                "findings": findings,
            }
    print(f"{work.name}: {sum(faults.values())} points, {dict(outcomes)}", flush=True)


def _place(folder: Path, before: Path) -> Path:
    """A fresh folder in which the old output stands."""
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(before, place / "out")
    for name in ("tmp", "cache"):
        (place / name).mkdir()
    return place


def _count(work: Work, folder: Path, before: Path, library: ctypes.CDLL) -> str:
    """The calls of a run without a fault, a letter each."""
    place = _place(folder, before)
    answer = folder / "calls"

    def child() -> int:
        code, errors = _faulted(work, place, library, -2, 0)
        count = ctypes.c_int.in_dll(library, "faults_count").value
        answer.write_bytes(bytes((ctypes.c_char * count).in_dll(library, "faults_calls")))
        if code:
            print(errors, file=sys.stderr)
        return code

    status = _fork(child)
    assert status == 0, f"{work.name} fails without a fault: {status}"
    return answer.read_text()


def _one(
    work: Work, folder: Path, before: Path, library: ctypes.CDLL, at: int, fault: int, letter: str
) -> tuple[str, str]:
    """One point: what happened, and what is wrong with that (or an empty text)."""
    place, said = _place(folder, before), folder / "said"

    def child() -> int:
        code, errors = _faulted(work, place, library, at, fault)
        said.write_text(errors)
        return code

    said.unlink(missing_ok=True)
    status = _fork(child)
    errors = said.read_text() if said.exists() else ""
    outcome = {None: "hung", 0: "finished", -signal.SIGKILL: "killed"}.get(status, "refused")
    problem = ""
    if status is None:
        problem = f"no end after {SECONDS} s"
    elif status not in (0, 3, 4, -signal.SIGKILL) or (status == -signal.SIGKILL) != (fault == KILL):
        problem = f"it ends with {status}: {' '.join(errors.split())[-200:]}"
    elif "Traceback" in errors:
        problem = f"a traceback: {' '.join(errors.split())[-200:]}"
    elif fault == errno.EINTR and status != 0:
        problem = f"an interrupted call is an error: {' '.join(errors.split())[-200:]}"
    if not problem:
        problem = _not_whole(work, place)
    if (
        not problem and fault != KILL and letter != "u"
    ):  # what cannot be removed stays, for the next run to remove
        problem = _left_over(place)
    if not problem and fault == KILL and _fork(lambda: _faulted(work, place, library, -2, 0)[0]) != 0:
        problem = "the same command does not work after a kill"
    return outcome, problem


def _not_whole(work: Work, place: Path) -> str:
    try:
        work.whole(place / "out" / work.output)
    except Exception as error:
        return f"the output is not whole: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _left_over(place: Path) -> str:
    """Temporary names that are still there, of a process that was not killed."""
    names = [path.name for path in place.rglob(".edgecsi-*")]
    return f"left behind: {', '.join(names[:3])}" if names else ""


def _faulted(work: Work, place: Path, library: ctypes.CDLL, at: int, fault: int) -> tuple[int, str]:
    os.environ |= {"TMPDIR": str(place / "tmp"), "EDGECSI_CACHE": str(place / "cache")}
    tempfile.tempdir = None
    library.faults_arm(os.fsencode(place), at, fault)
    try:
        return _run(work.arguments(place / "out"))
    finally:
        library.faults_disarm()


def _run(arguments: Sequence[str]) -> tuple[int, str]:
    """The program, in this process: its exit code and what it says on stderr."""
    from edgecsi.cli import main

    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        code = main(list(arguments))
    return code, errors.getvalue()


def _fork(child: Callable[[], int]) -> int | None:
    """Run in a fork of this process: its exit code, minus a signal, or None if it did not end."""
    sys.stdout.flush()
    number = os.fork()
    if number == 0:
        code = 99
        try:
            code = child()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return None


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
