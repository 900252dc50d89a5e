"""Work in a child process: where LLVM and TVM meet what they hold impossible, they end the process they run in.

Exporting and lowering stay in the parent: graphs of PyTorch and Relax cannot be handed out of a child, and doing them
twice would double the time of a build. A signal there ends the build before anything is written.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import json
import os
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from edgecsi.errors import EdgecsiError

PATIENCE = 3600
"""Seconds: many times what the largest network takes on a small board."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


class ChildFailed(Exception):
    """The child was ended by a signal, did not end, or its work raised an exception; the text is one line."""


def in_child(work: Callable[[], bytes], seconds: int = PATIENCE) -> bytes:
    """What `work` returns. A fork costs some 10 ms: nothing is started or imported anew.

    The child ends with the thread that waits for it, however that one ends, and after `seconds` at the latest.

    Raises:
        ChildFailed: a signal ended it (named, with the last thing it said), it did not end, or `work` raised an
            exception (with the child's traceback as a note).
        OSError, MemoryError: `work` raised it, or LLVM ended itself because it could not write.
    """
    with _in_memory("result") as result, _in_memory("stderr") as words:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads that sleep do no harm to the child
            parent = os.getpid()
            # Python calls others' functions in the parent, too, and what a signal raises in them is lost.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            try:
                number = os.fork()
            except OSError:  # no more processes: then as it was before there were children
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                return work()
        if number == 0:
            _serve(work, result, words, seconds, parent)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            status = _ended(number)
        except ChildProcessError:  # the caller's program ignores SIGCHLD
            status = 0
        except BaseException:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
            raise
        result.seek(0)
        kind, answer = result.read(1), result.read()
        if kind == b"+":
            return answer
        if kind == b"-":
            raise _error(json.loads(answer))
        words.seek(0)
        said = _telling(words.read().decode("utf-8", "replace"))
    if refused := said.partition("IO failure on output stream: ")[2]:
        too_large = refused == os.strerror(errno.EFBIG)
        raise OSError(errno.EFBIG if too_large else errno.ENOSPC, refused)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    end = f"ended by {signal.Signals(number).name}" if number else "it ended without a result"
    if number == signal.SIGALRM:
        end = f"no end after {seconds} s"
    raise ChildFailed(f"{end}{': ' if said else ''}{said}")


def _ended(child: int) -> int:
    """Its status once it has ended.

    It is asked for now and then: a signal that comes just before a call that blocks would be noticed after it only.
    """
    delay = 0.001
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(delay)
        delay = min(2 * delay, 0.02)


def _in_memory(name: str) -> BinaryIO:
    return os.fdopen(os.memfd_create(f"edgecsi-{name}", os.MFD_CLOEXEC), "w+b")


def _serve(
    work: Callable[[], bytes], result: BinaryIO, words: BinaryIO, seconds: int, parent: int
) -> NoReturn:
    """The child: an end in a crash must leave no core file and say nothing on the terminal."""
    try:
        for number in (*ENDING, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ENDING, signal.SIGALRM})
        signal.alarm(seconds)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before that
            os._exit(0)
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        os.dup2(words.fileno(), 2)
        try:
            answer = b"+" + work()
        except BaseException as error:
            answer = b"-" + json.dumps(_told(error)).encode()
        result.write(answer)
        result.flush()
    finally:
        os._exit(0)


def _told(error: BaseException) -> dict[str, Any]:
    lines = (error.why if isinstance(error, EdgecsiError) else str(error)).strip().splitlines()
    told: dict[str, Any] = {
        "kind": next((k.__name__ for k in (OSError, MemoryError) if isinstance(error, k)), ""),
        "text": (lines[-1] if lines else type(error).__name__)[:300],
        "trace": "".join(traceback.format_exception(error)),
    }
    if isinstance(error, OSError):
        told |= {"errno": error.errno, "text": error.strerror, "filename": str(error.filename or "") or None}
    return told


def _error(told: dict[str, Any]) -> Exception:
    error: Exception
    if told["kind"] == "OSError":
        error = OSError(told["errno"], told["text"], told["filename"])
    else:
        error = (MemoryError if told["kind"] else ChildFailed)(told["text"])
    error.add_note(told["trace"])
    return error


def _telling(words: str) -> str:
    """The line of LLVM's last words that says what it was about."""
    lines = [line for line in words.splitlines() if line.strip()]
    found = [line for line in lines if "LLVM ERROR" in line or "Assertion" in line or "error:" in line]
    return (found or [line for line in lines if not line.startswith((" ", "!", "#"))] or [""])[-1].strip()[
        :300
    ]
